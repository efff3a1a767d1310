package unpack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/bundle/v1pb"
	"github.com/open-policy-agent/opa/v1/util"
	"google.golang.org/protobuf/proto"
)

// errEnd is what a loader gives behind the last file, as it is.
var errEnd = io.EOF

// maxRoots bounds the roots in a manifest: OPA compares each with each.
const maxRoots = 1024

// patchName is the file that makes a bundle a delta.
const patchName = "patch.json"

// listing are the files of a bundle.
type listing struct {
	limit int64
	// keepAll reads all files, not only those that are looked at here.
	keepAll bool
	files   []file
}

// file is one of them: its text, or what it can be read from once.
type file struct {
	url, path string
	text      []byte
	unread    *opabundle.Descriptor
}

func (f file) isModule() bool { return strings.HasSuffix(filepath.ToSlash(f.path), opabundle.RegoExt) }

// isManifest is true for both of its forms.
func (f file) isManifest() bool {
	return strings.HasSuffix(f.path, opabundle.ManifestExt) || strings.HasSuffix(f.path, opabundle.ManifestProtoExt)
}

// read takes all files of a loader.
func (l *listing) read(from opabundle.DirectoryLoader) error {
	for {
		d, err := from.NextFile()
		if err == errEnd { //nolint:errorlint // one that is wrapped is of an archive that is broken
			return nil
		}
		if err != nil {
			return fmt.Errorf("bundle read failed: %w", err) // OPA's words
		}
		f := file{url: d.URL(), path: d.Path()}
		if l.keepAll || f.isModule() || f.isManifest() || opabundle.IsSignaturesFile(f.path) || filepath.Base(f.path) == patchName {
			f.text, err = content(d, l.limit)
		} else {
			f.unread = d
		}
		if err != nil {
			return err
		}
		l.files = append(l.files, f)
	}
}

// content reads a file up to one byte more than it may have: OPA's reader refuses that.
func content(d *opabundle.Descriptor, limit int64) ([]byte, error) {
	var g grab
	_, err := d.Read(&g, limit+1)
	if closing := d.Close(); err == nil || errors.Is(err, io.EOF) {
		err = closing
	}
	return g.b, err
}

// grab takes what is read of a buffer without copying it: data may be large, and are in
// memory already.
type grab struct{ b []byte }

// Write implements io.Writer.
func (g *grab) Write(b []byte) (int, error) {
	g.b = append(g.b, b...)
	return len(b), nil
}

// ReadFrom implements io.ReaderFrom.
func (g *grab) ReadFrom(r io.Reader) (int64, error) {
	if some, ok := r.(*io.LimitedReader); ok {
		if all, ok := some.R.(*bytes.Buffer); ok {
			g.b = all.Bytes()[:min(some.N, int64(all.Len()))]
			return int64(len(g.b)), nil
		}
	}
	var buf bytes.Buffer
	n, err := buf.ReadFrom(r)
	g.b = buf.Bytes()
	return n, err
}

// manifest reads the bundle's manifest, if it has one. It is false for what is left to
// OPA's reader: several of them, or a wrong one.
func (l *listing) manifest() (opabundle.Manifest, bool) {
	var m opabundle.Manifest
	found := 0
	for _, f := range l.files {
		if f.isModule() || !f.isManifest() {
			continue
		}
		if found++; found > 1 {
			return m, false
		}
		if !strings.HasSuffix(f.path, opabundle.ManifestProtoExt) {
			if util.NewJSONDecoder(bytes.NewReader(f.text)).Decode(&m) != nil {
				return m, false
			}
			continue
		}
		var message v1pb.Manifest
		if proto.Unmarshal(f.text, &message) != nil {
			return m, false
		}
		read, err := opabundle.ManifestFromProto(&message)
		if err != nil {
			return m, false
		}
		m = *read
	}
	return m, true
}

// versions says which Rego each module is in. It is false for deltas and for what the
// manifest says wrongly.
func (l *listing) versions(m opabundle.Manifest, o ast.ParserOptions) ([]ast.RegoVersion, bool) {
	b := opabundle.Bundle{Manifest: m}
	o.RegoVersion = b.RegoVersion(o.EffectiveRegoVersion())
	var versions []ast.RegoVersion
	for _, f := range l.files {
		if filepath.Base(f.path) == patchName {
			return nil, false
		}
		if !f.isModule() {
			continue
		}
		v, err := b.RegoVersionForFile(filepath.ToSlash(f.path), o.EffectiveRegoVersion())
		if err != nil {
			return nil, false
		}
		if v == ast.RegoUndefined {
			v = o.RegoVersion
		}
		versions = append(versions, v)
	}
	return versions, true
}

// verified says that the bundle is signed as it has to be, with all of its files, and
// gives the signatures. If it does not, OPA's reader says why.
func (l *listing) verified(o Options) (opabundle.SignaturesConfig, bool) {
	var s opabundle.SignaturesConfig
	if o.Unverified {
		return s, true
	}
	found := 0
	for _, f := range l.files {
		if !opabundle.IsSignaturesFile(f.path) {
			continue
		}
		if found++; found > 1 || util.NewJSONDecoder(bytes.NewReader(f.text)).Decode(&s) != nil {
			return s, false
		}
	}
	switch {
	case s.Signatures == nil && s.Plugin == "":
		return s, !o.Verify.SignatureRequired()
	case o.Verify == nil:
		return s, false
	}
	signed, err := opabundle.VerifyBundleSignature(s, o.Verify)
	if err != nil {
		return s, false
	}
	for _, f := range l.files {
		if !opabundle.IsSignaturesFile(f.path) && !f.verify(o, signed) {
			return s, false
		}
	}
	return s, len(signed) == 0 // no file is missing
}

// verify takes a file off those that are signed, if it is what was signed.
func (f file) verify(o Options, signed map[string]opabundle.FileInfo) bool {
	path := f.path
	if o.Folder != "" {
		path = f.url
	}
	path = strings.TrimPrefix(path, "/")
	for _, pattern := range o.Verify.Exclude {
		if match, _ := filepath.Match(pattern, path); match {
			delete(signed, path)
			return true
		}
	}
	if int64(len(f.text)) > o.SizeLimit {
		return false
	}
	return opabundle.VerifyBundleFile(path, *bytes.NewBuffer(f.text), signed) == nil
}
