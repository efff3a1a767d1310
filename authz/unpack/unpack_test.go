package unpack

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/bundle/v1pb"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/authz/bundletest"
)

// byOPA reads an archive as OPA's downloader does.
func byOPA(archive []byte, o Options) (*opabundle.Bundle, error) {
	loader := opabundle.NewTarballLoaderWithBaseURL(bytes.NewReader(archive), "")
	r := opabundle.NewCustomReader(loader.WithSizeLimitBytes(o.SizeLimit)).WithSizeLimitBytes(o.SizeLimit).WithRegoVersion(o.Parser.RegoVersion).
		WithProcessAnnotations(o.Parser.ProcessAnnotation).WithBundleVerificationConfig(o.Verify).WithBundleEtag(o.ETag).
		WithBundleName(o.Name).WithLazyLoadingMode(true)
	b, err := r.Read()
	return &b, err
}

// compare reads an archive in both ways, and gives what OPA makes of it.
func compare(t *testing.T, archive []byte, o Options) (*opabundle.Bundle, error) {
	t.Helper()
	want, wantErr := byOPA(archive, o)
	check := func(got *opabundle.Bundle, err error) {
		t.Helper()
		switch {
		case (err == nil) != (wantErr == nil):
			t.Fatalf("error %v, OPA's is %v", err, wantErr)
		case err == nil:
			same(t, got, want)
		case err.Error() != wantErr.Error() && !oneOfMany(wantErr):
			t.Fatalf("error %q, OPA's is %q", err, wantErr)
		}
	}
	check(Read(t.Context(), opabundle.NewTarballLoaderWithBaseURL(bytes.NewReader(archive), ""), o))
	if got, err := ReadArchive(t.Context(), archive, 1<<30, o); !errors.Is(err, ErrDelta) {
		check(got, err)
	}
	return want, wantErr
}

// oneOfMany says that OPA reports of several modules that are wrong any one.
func oneOfMany(err error) bool { return strings.Contains(err.Error(), "rego_") }

// same compares all that is in a bundle.
func same(t *testing.T, got, want *opabundle.Bundle) {
	t.Helper()
	if len(got.Modules) != len(want.Modules) || len(got.Raw) != len(want.Raw) {
		t.Fatalf("%d modules and %d files, OPA has %d and %d", len(got.Modules), len(got.Raw), len(want.Modules), len(want.Raw))
	}
	for i := range want.Modules {
		if !reflect.DeepEqual(got.Modules[i], want.Modules[i]) {
			t.Fatalf("module %+v, OPA has %+v", got.Modules[i], want.Modules[i])
		}
	}
	for i := range want.Raw {
		if got.Raw[i].Path != want.Raw[i].Path || !bytes.Equal(got.Raw[i].Value, want.Raw[i].Value) {
			t.Fatalf("file %s %q, OPA has %s %q", got.Raw[i].Path, got.Raw[i].Value, want.Raw[i].Path, want.Raw[i].Value)
		}
	}
	a, b := *got, *want
	a.Modules, a.Raw, b.Modules, b.Raw = nil, nil, nil, nil
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("%+v, OPA has %+v", a, b)
	}
}

var (
	testKeys = map[string]*opabundle.KeyConfig{"k": {Key: "the key", Algorithm: "HS256"}}
	required = opabundle.NewVerificationConfig(testKeys, "k", "", nil)
	optional = opabundle.NewVerificationConfig(testKeys, "", "", nil).WithOptionalSignature()
	partly   = opabundle.NewVerificationConfig(testKeys, "k", "", []string{"b.rego", "x/*"})
)

// signed gives files with their signature by key.
func signed(t testing.TB, files map[string]string, key string) map[string]string {
	t.Helper()
	b, err := opabundle.NewReader(bytes.NewReader(bundletest.Tarball(t, files))).WithLazyLoadingMode(false).Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.GenerateSignature(opabundle.NewSigningConfig(key, "HS256", ""), "k", true); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := opabundle.Write(&out, b); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	written := make(map[string]string)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return written
		}
		text, readErr := io.ReadAll(r)
		if err = cmp.Or(err, readErr); err != nil {
			t.Fatal(err)
		}
		written[strings.TrimPrefix(h.Name, "/")] = string(text)
	}
}

// The same archive read by us and by OPA's reader gives the same, or the same error.
func TestAsOPA(t *testing.T) {
	small := map[string]string{
		".manifest": `{"revision": "r1", "roots": ["a", "b", "x"], "metadata": {"by": "me"}}`,
		"a.rego":    "# METADATA\n# title: one\npackage a.b[\"if\"]\n\nimport data.x\n\nallow if input.x == x.y # why\n",
		"b.rego":    "package b\ndefault y := 1", "data.json": `{"x": {"y": 1}}`, "x/data.yaml": "z: 2", "x/readme.txt": "hello",
	}
	with := func(files map[string]string, pairs ...string) map[string]string {
		files = maps.Clone(files)
		for i := 0; i < len(pairs); i += 2 {
			if files[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
				delete(files, pairs[i])
			}
		}
		return files
	}
	noManifest := with(small, ".manifest", "")
	v0, revision := int32(0), "r2"
	message, err := proto.Marshal(&v1pb.Manifest{Revision: &revision, Roots: []string{"a", "b", "x"}, RegoVersion: &v0})
	if err != nil {
		t.Fatal(err)
	}
	inProto := string(message)
	good := signed(t, small, "the key")
	for name, c := range map[string]struct {
		files map[string]string
		o     Options
		fails bool
	}{
		"plain":                     {files: small},
		"no manifest":               {files: noManifest},
		"nothing":                   {files: map[string]string{}},
		"annotations":               {files: small, o: Options{Parser: ast.ParserOptions{ProcessAnnotation: true}}},
		"a package with keywords":   {files: with(noManifest, "a.rego", "package a.b[\"c d\"].e\nx := 1")},
		"v0 by the manifest":        {files: with(small, ".manifest", `{"rego_version": 0}`, "a.rego", "package a\nallow { true }")},
		"v0 for a file":             {files: with(small, ".manifest", `{"rego_version": 1, "file_rego_versions": {"a.rego": 0}}`, "a.rego", "package a\nallow { true }")},
		"v0 for files":              {files: with(small, ".manifest", `{"file_rego_versions": {"*.rego": 0}}`, "a.rego", "package a\nallow { true }")},
		"a version that is none":    {files: with(small, ".manifest", `{"rego_version": 7}`), fails: true},
		"a file's version is none":  {files: with(small, ".manifest", `{"file_rego_versions": {"b.rego": 7}}`), fails: true},
		"a pattern that is none":    {files: with(small, ".manifest", `{"file_rego_versions": {"[": 1}}`), fails: true},
		"v0 where it is v1":         {files: with(small, "a.rego", "package a\nallow { true }"), fails: true},
		"two wrong modules":         {files: with(small, "a.rego", "package a\nallow {", "b.rego", "package"), fails: true},
		"an empty module":           {files: with(small, "a.rego", "# nothing\n"), fails: true},
		"a module outside":          {files: with(small, "c.rego", "package c"), fails: true},
		"overlapping roots":         {files: with(small, ".manifest", `{"roots": ["a", "a/b", "b", "x"]}`), fails: true},
		"a broken manifest":         {files: with(small, ".manifest", `{"roots"`), fails: true},
		"two manifests":             {files: with(small, "x/.manifest", `{}`), fails: true},
		"a manifest in protobuf":    {files: with(noManifest, ".manifest.pb", inProto, "a.rego", "package a\nallow { true }")},
		"a broken one in protobuf":  {files: with(noManifest, ".manifest.pb", "\xff"), fails: true},
		"both manifests":            {files: with(small, ".manifest.pb", inProto), fails: true},
		"wasm that is not there":    {files: with(small, ".manifest", `{"wasm": [{"entrypoint": "a", "module": "/m.wasm"}]}`), fails: true},
		"wasm":                      {files: with(small, "policy.wasm", "\x00asm")},
		"a delta":                   {files: map[string]string{"patch.json": `{"data": [{"op": "upsert", "path": "/a", "value": 1}]}`}},
		"a delta and a module":      {files: with(small, "patch.json", `{"data": [{"op": "upsert", "path": "/a", "value": 1}]}`), fails: true},
		"a folder called module":    {files: map[string]string{"a.rego/data.json": `{}`, "b.rego": "package b"}},
		"a large file":              {files: small, o: Options{SizeLimit: 20}, fails: true},
		"a large module":            {files: map[string]string{"a.rego": "package a\n" + strings.Repeat("# ", 50)}, o: Options{SizeLimit: 100}, fails: true},
		"a module at the limit":     {files: map[string]string{"a.rego": "package a\n" + strings.Repeat("#", 90)}, o: Options{SizeLimit: 100}},
		"signed":                    {files: good, o: Options{Verify: required}},
		"signed, need not be":       {files: good, o: Options{Verify: optional}},
		"not signed, need not be":   {files: small, o: Options{Verify: optional}},
		"not signed":                {files: small, o: Options{Verify: required}, fails: true},
		"signed, no key":            {files: good, fails: true},
		"signed by another key":     {files: signed(t, small, "another"), o: Options{Verify: required}, fails: true},
		"need not be, by another":   {files: signed(t, small, "another"), o: Options{Verify: optional}, fails: true},
		"another module":            {files: with(good, "a.rego", "package a\nallow := true"), o: Options{Verify: required}, fails: true},
		"other data":                {files: with(good, "data.json", `{"x": {"y": 2}}`), o: Options{Verify: required}, fails: true},
		"the same data":             {files: with(good, "data.json", ` {"x":{"z":2,"y":1}}`), o: Options{Verify: required}},
		"another manifest":          {files: with(good, ".manifest", `{"revision": "r2", "roots": ["a", "b", "x"]}`), o: Options{Verify: required}, fails: true},
		"a module more":             {files: with(good, "x/c.rego", "package x.c\nallow := true"), o: Options{Verify: required}, fails: true},
		"a module less":             {files: with(good, "b.rego", ""), o: Options{Verify: required}, fails: true},
		"excluded, another":         {files: with(good, "b.rego", "package b"), o: Options{Verify: partly}},
		"excluded, more":            {files: with(good, "x/c.rego", "package x.c"), o: Options{Verify: partly}},
		"not excluded":              {files: with(good, "a.rego", "package a"), o: Options{Verify: partly}, fails: true},
		"broken signatures":         {files: with(good, ".signatures.json", `{"signatures"`), o: Options{Verify: required}, fails: true},
		"no signatures in the file": {files: with(good, ".signatures.json", `{}`), o: Options{Verify: required}, fails: true},
		"an empty list":             {files: with(good, ".signatures.json", `{"signatures": []}`), o: Options{Verify: optional}, fails: true},
		"two files of signatures":   {files: with(good, "x/.signatures.json", good[".signatures.json"]), o: Options{Verify: required}, fails: true},
		"another verifier":          {files: with(good, ".signatures.json", `{"signatures": ["x"], "plugin": "none"}`), o: Options{Verify: required}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Name, c.o.ETag = "shop", "e"
			if c.o.SizeLimit == 0 {
				c.o.SizeLimit = opabundle.DefaultSizeLimitBytes
			}
			if c.o.Parser.RegoVersion == ast.RegoUndefined {
				c.o.Parser.RegoVersion = ast.RegoV1
			}
			b, err := compare(t, bundletest.Tarball(t, c.files), c.o)
			if (err != nil) != c.fails {
				t.Errorf("error %v", err)
			}
			if err == nil && len(b.Modules) == 0 && strings.Contains(name, "sign") {
				t.Error("there is nothing in it")
			}
		})
	}
}

// Roots are bounded, because OPA compares each with each.
func TestRootsAreBounded(t *testing.T) {
	for _, n := range []int{maxRoots, maxRoots + 1} {
		roots := make([]string, n)
		for i := range roots {
			roots[i] = fmt.Sprintf("%q", fmt.Sprint("r", i))
		}
		archive := bundletest.Tarball(t, map[string]string{".manifest": `{"roots": [` + strings.Join(roots, ",") + `]}`})
		_, err := Read(t.Context(), opabundle.NewTarballLoaderWithBaseURL(bytes.NewReader(archive), ""), Options{})
		if (err != nil) != (n > maxRoots) {
			t.Errorf("%d roots: error %v", n, err)
		}
	}
}

// Bundles of random files are read as by OPA, one revision after the other.
func TestRevisionsAsOPA(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	failed := 0
	for range 300 {
		files := map[string]string{}
		for range r.IntN(6) {
			name := pick("a.rego", "b.rego", "c/a.rego", "c/data.json", "data.json", "d/data.yml", "x.txt")
			switch {
			case strings.HasSuffix(name, ".rego"):
				files[name] = pick("package a\n", "package c.b\n", "package a[\"x y\"]\n", "# c\npackage b\n", "", "package if\n") + pick("x := 1", "allow if input.y", "allow { true }", "p contains 1", "")
			default:
				files[name] = pick("{}", "a: 1", `{"a": {"b": 1}}`, "[")
			}
		}
		if r.IntN(2) == 0 {
			files[".manifest"] = pick(`{}`, `{"roots": ["a"]}`, `{"roots": ["a", "b", "c"]}`, `{"rego_version": 0}`, `{"rego_version": 0, "file_rego_versions": {"/a.rego": 1, "c/*": 1}}`, `{"file_rego_versions": {"b.rego": 9}}`, `[`)
		}
		o := Options{Name: pick("", "n", "file:///x/y"), SizeLimit: 1 << 20, Parser: ast.ParserOptions{RegoVersion: ast.RegoV1, ProcessAnnotation: r.IntN(2) == 0}}
		if _, err := compare(t, bundletest.Tarball(t, files), o); err != nil {
			failed++
		}
	}
	if failed < 30 || failed > 270 {
		t.Errorf("%d of 300 bundles are wrong", failed)
	}
}

// A digest is another one for each change of a module, of how it is read and of what the
// manifest says of it, and the same for other data and revisions; a bundle whose modules
// are known has everything else.
func TestDigest(t *testing.T) {
	files := map[string]string{
		".manifest": `{"revision": "r1", "roots": ["a", "b", "x"]}`, "a.rego": "package a\nallow if data.b.list[_] == input.y", "b.rego": "package b\nlist := [1]",
		"x/data.json": `{"z": 1}`,
	}
	read := func(files map[string]string, o Options, known bool) (*opabundle.Bundle, Digest) {
		t.Helper()
		var d Digest
		o.Parser.RegoVersion = ast.RegoV1
		o.Pick = func(is Modules, _ map[string]*ast.Module) ([]string, bool) { d = is.Digest; return nil, !known }
		b, err := Read(t.Context(), opabundle.NewTarballLoaderWithBaseURL(bytes.NewReader(bundletest.Tarball(t, files)), ""), o)
		if err != nil {
			t.Fatal(err)
		}
		return b, d
	}
	changed := func(name, text string) map[string]string {
		out := maps.Clone(files)
		out[name] = text
		return out
	}
	full, first := read(files, Options{}, false)
	for name, other := range map[string]map[string]string{
		"nothing": files, "data": changed("x/data.json", `{"z": 2}`), "revision": changed(".manifest", `{"revision": "r2", "roots": ["a", "b", "x"], "metadata": {"by": "me"}}`),
	} {
		b, d := read(other, Options{}, true)
		if d != first || len(b.Modules) != 0 || len(b.Raw) != 1 || string(b.Raw[0].Value) != other["x/data.json"] || (name == "revision") != (b.Manifest.Revision == "r2") {
			t.Errorf("%s: %+v", name, b)
		}
		if name == "nothing" && !reflect.DeepEqual(b.Manifest, full.Manifest) {
			t.Errorf("manifest %+v, want %+v", b.Manifest, full.Manifest)
		}
	}
	seen := map[Digest]string{first: "the first"}
	for name, c := range map[string]struct {
		files map[string]string
		o     Options
	}{
		"a text": {files: changed("b.rego", "package b\nlist := [2]")}, "a comment": {files: changed("b.rego", "package b\nlist := [1] # one")},
		"a module": {files: changed("c.rego", "package x")}, "roots": {files: changed(".manifest", `{"revision": "r1", "roots": ["a", "b", "x", "y"]}`)},
		"versions":    {files: changed(".manifest", `{"revision": "r1", "roots": ["a", "b", "x"], "file_rego_versions": {"/b.rego": 1}}`)},
		"annotations": {files: files, o: Options{Parser: ast.ParserOptions{ProcessAnnotation: true}}}, "the name": {files: files, o: Options{Name: "n"}},
	} {
		_, d := read(c.files, c.o, false)
		if seen[d] != "" {
			t.Errorf("%s: as %s", name, seen[d])
		}
		seen[d] = name
	}
	if _, d := read(map[string]string{".manifest": `{"rego_version": 0}`, "b.rego": "package b\nlist = [1]"}, Options{}, true); d != (Digest{}) {
		t.Error("modules in another Rego are compared")
	}
}

// A bundle is not parsed further when nobody waits for it any more.
func TestEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	cancel(over)
	_, err := Read(ctx, opabundle.NewTarballLoaderWithBaseURL(bytes.NewReader(bundletest.Tarball(t, map[string]string{"a.rego": "package a"})), ""), Options{Parser: ast.ParserOptions{RegoVersion: ast.RegoV1}})
	if !errors.Is(err, over) {
		t.Errorf("error %v", err)
	}
}

// FuzzArchive compares what comes out of any archive.
func FuzzArchive(f *testing.F) {
	for _, files := range []map[string]string{
		{"a.rego": "package a", "data.json": "{}"},
		{".manifest": `{"roots": ["a"]}`, "a.rego": "package a\nx := 1", "x/b.rego": "package b"},
		{"patch.json": "{}", ".signatures.json": "{}"},
	} {
		f.Add(bundletest.Tarball(f, files), true)
		f.Add(bundletest.Tarball(f, files), false)
	}
	f.Add([]byte("no archive"), false)
	f.Add([]byte(nil), true)
	f.Fuzz(func(t *testing.T, archive []byte, verify bool) {
		o := Options{Name: "n", SizeLimit: 1 << 16, Parser: ast.ParserOptions{RegoVersion: ast.RegoV1}}
		if verify {
			o.Verify = required
		}
		_, _ = compare(t, archive, o)
	})
}

// FuzzFiles compares what comes out of an archive of files.
func FuzzFiles(f *testing.F) {
	f.Add(`{"revision": "1", "roots": ["a"]}`, "a.rego", "package a\nallow if input.x", "b/c.rego", "package a.b", `{"a": 1}`)
	f.Add(`{"rego_version": 0}`, "a.rego", "package a\nallow { input.x }", ".manifest", "{}", "")
	f.Add("", "x.rego", "# METADATA\n# scope: package\npackage x[\"y\"].z\n", "x.rego/data.json", "{}", "[")
	f.Add(`{"file_rego_versions": {"*": 0}}`, "/p.rego", "package p\nimport rego.v1", "data.yaml", "a: b", "{}")
	f.Fuzz(func(t *testing.T, manifest, name1, text1, name2, text2, data string) {
		files := map[string]string{name1: text1, name2: text2, "data.json": data}
		if manifest != "" {
			files[".manifest"] = manifest
		}
		for _, name := range slices.Collect(maps.Keys(files)) {
			if name == "" || len(name) > 100 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Skip("no name of a file")
			}
		}
		_, _ = compare(t, bundletest.Tarball(t, files), Options{Name: "n", SizeLimit: 1 << 16, Parser: ast.ParserOptions{RegoVersion: ast.RegoV1, ProcessAnnotation: true}})
	})
}
