package meshdir

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// regoSpec is the specification of a RegoPolicy.
type regoSpec struct {
	Selector *labelSelector `json:"selector"`
	Module   string         `json:"module"`
	// ModuleFile names a .rego file of the mesh directory in place of Module.
	ModuleFile      string      `json:"moduleFile"`
	Bundle          *regoBundle `json:"bundle"`
	Query           string      `json:"query"`
	Mode            string      `json:"mode"`
	WhenUnavailable string      `json:"whenUnavailable"`
}

type regoBundle struct {
	URL     string       `json:"url"`
	Refresh *duration    `json:"refresh"`
	Signing *regoSigning `json:"signing"`
	// Credentials and CAFile are files on the machine of authz.
	Credentials *bundleCredentials `json:"credentials"`
	CAFile      string             `json:"caFile"`
}

// bundleCredentials say by what a server of bundles is shown who asks: one of them. No
// secret is in them, nor a path: names of files in the folder that authz has for the
// bundle's host.
type bundleCredentials struct {
	Bearer    *bearerFile  `json:"bearer"`
	ClientTLS *clientFiles `json:"clientTLS"`
	OAuth2    *oauth2File  `json:"oauth2"`
}

type bearerFile struct {
	TokenFile string `json:"tokenFile"`
}

type clientFiles struct {
	CertificateFile string `json:"certificateFile"`
	KeyFile         string `json:"keyFile"`
}

type oauth2File struct {
	ClientFile string   `json:"clientFile"`
	Scopes     []string `json:"scopes"`
}

// regoSigning says who has to have signed a bundle.
type regoSigning struct {
	Key       string `json:"key"`
	Algorithm string `json:"algorithm"`
	Scope     string `json:"scope"`
}

func checkRegoPolicy(c *checker) {
	s := c.object.spec.(*regoSpec)
	c.policyMode(s.Selector, s.Mode, s.WhenUnavailable)
	sources := 0
	for _, given := range []bool{s.Module != "", s.ModuleFile != "", s.Bundle != nil} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		c.errorf("spec", "give exactly one of module, moduleFile and bundle")
	}
	if s.Module != "" && strings.TrimSpace(s.Module) == "" {
		c.errorf("spec.module", "the module is empty")
	}
	if s.Bundle != nil {
		s.Bundle.check(c)
	}
	if rest, ok := strings.CutPrefix(s.Query, "data."); !ok || rest == "" {
		c.errorf("spec.query", "%q is not a query: it begins with \"data.\", for example data.office.allow", shorten(s.Query))
	}
	if !c.failed() && s.Module != "" {
		c.compile("spec.module", s.Module, s.Query)
	}
}

// check refuses what authz would refuse: it must not get into a revision.
func (b *regoBundle) check(c *checker) {
	switch u, err := url.Parse(b.URL); {
	case err != nil || !slices.Contains([]string{"http", "https", "oci", "file"}, u.Scheme):
		c.errorf("spec.bundle.url", "%q is not an http, https, oci or file URL", shorten(b.URL))
	case u.User != nil:
		c.errorf("spec.bundle.url", "a user or password does not belong into a URL, which is no secret")
	case u.Scheme != "file" && (u.Host == "" || strings.Trim(u.Path, "/") == "" || u.Fragment != ""):
		c.errorf("spec.bundle.url", "%q: want %s://host/path", shorten(b.URL), u.Scheme)
	case u.Scheme == "http" && b.Signing == nil:
		c.errorf("spec.bundle.url", "whoever is on the way could change the bundle: use https, or say who signs it (signing)")
	case u.Scheme != "file":
	case u.Host != "" || !path.IsAbs(u.Path):
		c.errorf("spec.bundle.url", "%q: want file:///path of a folder or .tar.gz", shorten(b.URL))
	case c.options.folderProblem(u.Path) != "":
		c.errorf("spec.bundle.url", "%q %s", shorten(b.URL), c.options.folderProblem(u.Path))
	case c.missing(u.Path):
		c.errorf("spec.bundle.url", "there is no %q", shorten(u.Path))
	case b.Signing != nil:
		c.errorf("spec.bundle.signing", "is for bundles from elsewhere: whoever writes this file can write that one")
	}
	if b.Refresh != nil && *b.Refresh <= 0 {
		c.errorf("spec.bundle.refresh", "must be above 0")
	}
	if b.Signing != nil {
		b.Signing.check(c)
	}
	b.checkCredentials(c)
}

// checkCredentials refuses what authz would refuse.
func (b *regoBundle) checkCredentials(c *checker) {
	remote := strings.HasPrefix(b.URL, "https:") || strings.HasPrefix(b.URL, "oci:")
	if b.CAFile != "" {
		c.credentialFile("spec.bundle.caFile", b.CAFile)
	}
	if b.Credentials == nil {
		if b.CAFile != "" && !remote {
			c.errorf("spec.bundle.caFile", "is for https and oci")
		}
		return
	}
	const at = "spec.bundle.credentials"
	if !remote {
		c.errorf(at, "are for https and oci: whoever is on the way could read them")
	}
	kinds := 0
	if s := b.Credentials.Bearer; s != nil {
		kinds++
		c.credentialFile(at+".bearer.tokenFile", s.TokenFile)
	}
	if s := b.Credentials.ClientTLS; s != nil {
		kinds++
		c.credentialFile(at+".clientTLS.certificateFile", s.CertificateFile)
		c.credentialFile(at+".clientTLS.keyFile", s.KeyFile)
	}
	if s := b.Credentials.OAuth2; s != nil {
		kinds++
		c.credentialFile(at+".oauth2.clientFile", s.ClientFile)
		for i, scope := range s.Scopes {
			if scope == "" || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
				c.errorf(index(at+".oauth2.scopes", i), "%q is no scope of OAuth2", shorten(scope))
			}
		}
	}
	if kinds != 1 {
		c.errorf(at, "give exactly one of bearer, clientTLS and oauth2")
	}
}

// credentialFile refuses what is no name of a file below a folder.
func (c *checker) credentialFile(at, name string) {
	if !regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){0,7}$`).MatchString(name) || len(name) > 200 || !filepath.IsLocal(name) {
		c.errorf(at, "want the name of a file in authz's folder for the host (bundle_credentials), such as token; no secret belongs into a policy")
	}
}

// check allows public keys only: a key that verifies and signs would be known to
// everybody who may read policies.
func (k *regoSigning) check(c *checker) {
	if !slices.Contains([]string{"ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, k.Algorithm) {
		c.errorf("spec.bundle.signing.algorithm", "%q is none of ES256, ES384, ES512, RS256, RS384, RS512, PS256, PS384, PS512", shorten(k.Algorithm))
	}
	block, _ := pem.Decode([]byte(k.Key))
	if block == nil {
		c.errorf("spec.bundle.signing.key", "is no PEM public key")
		return
	}
	switch key, err := x509.ParsePKIXPublicKey(block.Bytes); key.(type) {
	case *ecdsa.PublicKey:
		if err == nil && strings.HasPrefix(k.Algorithm, "ES") {
			return
		}
	case *rsa.PublicKey:
		if err == nil && !strings.HasPrefix(k.Algorithm, "ES") {
			return
		}
	}
	c.errorf("spec.bundle.signing.key", "is no public key for %s", shorten(k.Algorithm))
}

// missing says that a file or folder is known not to be there.
func (c *checker) missing(name string) bool {
	if c.options.ReadFile == nil {
		return false
	}
	_, err := c.options.ReadFile(name)
	return errors.Is(err, fs.ErrNotExist)
}

// compile asks the caller's compiler, if there is one.
func (c *checker) compile(at, module, query string) {
	if c.options.CompileRego == nil {
		return
	}
	name := c.object.meta.Namespace + "/" + c.object.meta.Name
	err := c.options.CompileRego(name, module, query)
	if err == nil {
		return
	}
	place := locate(c.root, at)
	say := func(line int) string { return fmt.Sprintf("line %d of the module", line) }
	switch node := c.node(at); {
	case node != nil && at == "spec.moduleFile":
		say = func(line int) string { return fmt.Sprintf("%s:%d", shorten(node.Value), line) }
	case node != nil && node.Style&yaml.LiteralStyle != 0:
		// The block's text begins on the line after "|".
		first := true
		say = func(line int) string {
			if first {
				first, place = false, &yaml.Node{Line: node.Line + line}
			}
			return fmt.Sprintf("line %d", node.Line+line)
		}
	}
	c.at(place, at, "does not compile: %s", moduleLines(strings.Join(strings.Fields(err.Error()), " "), name, say))
}

// moduleLines writes the places in a compiler's message anew: "<name>:<line>" and
// "<name>:<line>:<column>".
func moduleLines(message, name string, say func(line int) string) string {
	form := regexp.MustCompile(regexp.QuoteMeta(name) + `:([0-9]+)(:[0-9]+)?`)
	return form.ReplaceAllStringFunc(message, func(place string) string {
		line, _ := strconv.Atoi(form.FindStringSubmatch(place)[1])
		return say(line)
	})
}

func (a *assembler) regoPolicy(o *object) *model.RegoPolicy {
	s := o.spec.(*regoSpec)
	p := &model.RegoPolicy{
		Meta: o.meta, Selector: s.Selector.labels(), Module: s.Module, Query: s.Query,
		FailOpen: s.WhenUnavailable == "Allow", Observe: s.Mode == "observe",
	}
	if s.ModuleFile != "" {
		a.report(o, func(c *checker) {
			data := a.rego(s.ModuleFile)
			if data == nil {
				c.errorf("spec.moduleFile", "there is no file %q in the mesh directory: write a path such as policies/office.rego", shorten(s.ModuleFile))
				return
			}
			p.Module = string(data)
			c.compile("spec.moduleFile", p.Module, s.Query)
		})
	}
	p.ModuleFile, p.ModuleLine = modulePlace(o, s)
	if split := a.options.SplitRego; split != nil && p.Module != "" {
		p.Form = split(o.meta.Namespace+"/"+o.meta.Name, p.Module, s.Query)
	}
	if s.Bundle != nil {
		p.BundleURL = s.Bundle.URL
		if s.Bundle.Refresh != nil {
			p.BundleRefresh = s.Bundle.Refresh.value()
		}
		if k := s.Bundle.Signing; k != nil {
			p.BundleSigning = model.BundleSigning{Key: k.Key, Algorithm: k.Algorithm, Scope: k.Scope}
		}
		p.BundleCredentials = s.Bundle.credentials()
	}
	p.Fingerprint = p.ContentHash()
	return p
}

func (b *regoBundle) credentials() model.BundleCredentials {
	out := model.BundleCredentials{CAFile: b.CAFile}
	if b.Credentials == nil {
		return out
	}
	if s := b.Credentials.Bearer; s != nil {
		out.TokenFile = s.TokenFile
	}
	if s := b.Credentials.ClientTLS; s != nil {
		out.CertificateFile, out.KeyFile = s.CertificateFile, s.KeyFile
	}
	if s := b.Credentials.OAuth2; s != nil {
		out.ClientFile, out.Scopes = s.ClientFile, s.Scopes
	}
	return out
}

// modulePlace tells where the lines of a module stand, see model.RegoPolicy.
func modulePlace(o *object, s *regoSpec) (file string, line int) {
	if s.ModuleFile != "" {
		return s.ModuleFile, 0
	}
	node := o.report().node("spec.module")
	if node == nil || node.Style&yaml.LiteralStyle == 0 {
		return o.meta.File, -1
	}
	return o.meta.File, node.Line
}

// rego gives the contents of a .rego file, nil if there is none.
func (a *assembler) rego(name string) []byte {
	for _, f := range a.files {
		if f.name == name && f.rego != nil {
			return f.rego
		}
	}
	return nil
}
