package bundle

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader"

	"github.com/writ-mesh/writ/authz/basedoc"
	"github.com/writ-mesh/writ/authz/rego"
)

// Local is what was read of files and folders on this machine.
type Local struct {
	files   *loader.Result
	data    basedoc.Data
	bundles map[string]*opabundle.Bundle
}

// ReadLocal reads files and folders with the meaning that arguments of `opa run` have,
// and those of `opa run --bundle`: gzipped tarballs are bundles in any case. v0 is for
// Rego of OPA before 1.0.
func ReadLocal(paths, bundlePaths []string, v0 bool) (*Local, error) {
	version := ast.RegoV1
	if v0 {
		version = ast.RegoV0
	}
	var plain []string
	for _, p := range paths {
		if strings.HasSuffix(p, ".tar.gz") {
			bundlePaths = append(bundlePaths, p)
		} else {
			plain = append(plain, p)
		}
	}
	l := &Local{bundles: make(map[string]*opabundle.Bundle, len(bundlePaths))}
	for _, p := range bundlePaths {
		b, err := loader.NewFileLoader().WithRegoVersion(version).WithSkipBundleVerification(true).WithBundleLazyLoadingMode(true).AsBundle(p)
		if err != nil {
			return nil, rego.OneLine(err)
		}
		l.bundles[p] = b
	}
	var err error
	if l.files, l.data, err = basedoc.Load(plain, version); err != nil {
		return nil, rego.OneLine(err)
	}
	return l, nil
}

// release lets go of the files' text, which OPA's manager holds and uses once.
func (l *Local) release() {
	if l == nil {
		return
	}
	for _, b := range l.bundles {
		b.Raw = nil
	}
}
