package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/writ-mesh/writ/authz/bundletest"
)

func TestCheck(t *testing.T) {
	few := bundletest.Tarball(t, map[string]string{"a.rego": "package a\n" + strings.Repeat("# a comment\n", 30), "data.json": "{}"})
	many := make(map[string]string)
	for i := range 50 {
		many[fmt.Sprintf("%d.json", i)] = "{}"
	}
	for name, c := range map[string]struct {
		archive []byte
		limit   int64
		want    string
	}{
		"fits":            {few, 10 << 10, ""},
		"no archive":      {[]byte("text"), 1, ""},
		"broken":          {few[:50], 10 << 10, ""},
		"one large file":  {bundletest.Tarball(t, map[string]string{"data.json": strings.Repeat(" ", 2<<20)}), 1 << 20, "larger than the limit"},
		"many small ones": {bundletest.Tarball(t, many), 20 << 10, "larger than the limit"},
		"sparse":          {sparse(t, 1<<30), 1 << 20, "larger than the limit"},
		"delta":           {bundletest.Tarball(t, map[string]string{"a/patch.json": "{}"}), 1 << 20, "delta"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check(c.archive, c.limit)
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// sparse is an archive whose only file says that it is large and has no bytes, by
// the old form of GNU tar: header type S, the real size at 483.
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	var block [512]byte
	copy(block[:], "data.json")
	copy(block[100:], "0000600\x00")
	copy(block[124:], "00000000000\x00")
	block[156] = 'S'
	copy(block[257:], "ustar  \x00")
	copy(block[386:], fmt.Sprintf("%011o\x00%011o\x00", size, 0)) // one empty piece at the end
	copy(block[483:], fmt.Sprintf("%011o\x00", size))
	copy(block[148:], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(append(block[:], make([]byte, 1024)...))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func FuzzCheck(f *testing.F) {
	f.Add(bundletest.Tarball(f, map[string]string{"a.rego": "package a"}))
	f.Add(bundletest.Tarball(f, map[string]string{"data.json": strings.Repeat(" ", 1<<20)}))
	f.Add(sparse(f, 1<<30))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 16
		if Check(b, limit) != nil || !bytes.HasPrefix(b, []byte(GzipMagic)) {
			return
		}
		// What passes fits, as a reader that trusts its sizes finds.
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		var total int64
		for r := tar.NewReader(z); ; {
			if _, err := r.Next(); err != nil {
				break
			}
			n, err := io.Copy(io.Discard, r)
			if total += n; total > limit {
				t.Fatalf("%d bytes passed a limit of %d", total, limit)
			}
			if err != nil {
				break
			}
		}
	})
}

// gzipped packs bytes.
func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// tarOf writes entries as Go does, each with its name for content if it is a file.
func tarOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// asSlowly says that what plainFiles reads is what OPA's loader reads, within the limits, and
// whether it reads it.
func asSlowly(t *testing.T, archive []byte, limit, sizeLimit int64) bool {
	t.Helper()
	files, ok := plainFiles(archive, limit, sizeLimit)
	if !ok {
		return false
	}
	if err := Check(archive, limit); err != nil {
		t.Fatalf("not refused: %v", err)
	}
	loader := opabundle.NewTarballLoaderWithBaseURL(bytes.NewReader(archive), "").WithSizeLimitBytes(sizeLimit)
	for _, f := range files {
		d, err := loader.NextFile()
		if err != nil {
			t.Fatalf("%q was read, OPA says %v", f.path, err)
		}
		text, err := content(d, sizeLimit)
		if err != nil || d.Path() != f.path || d.URL() != f.url || !bytes.Equal(text, f.text) {
			t.Fatalf("%q (%q) is %q, OPA reads %q (%q) as %q, error %v", f.path, f.url, f.text, d.Path(), d.URL(), text, err)
		}
	}
	if d, err := loader.NextFile(); !errors.Is(err, errEnd) {
		t.Fatalf("OPA goes on with %v, error %v", d, err)
	}
	return true
}

// Archives as they are commonly written are read at once, all others by OPA's loader.
func TestPlainFiles(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	file := tar.Header{Name: "/a/b.rego", Mode: 0o600, Typeflag: tar.TypeReg}
	owned := tar.Header{Name: "./data.json", Mode: 0o644, Typeflag: tar.TypeReg, Uid: 1000, Gid: 1000, Uname: "someone", Gname: "users", ModTime: now}
	folder := tar.Header{Name: "a/", Mode: 0o755, Typeflag: tar.TypeDir, ModTime: now}
	with := func(h tar.Header, change func(*tar.Header)) tar.Header {
		change(&h)
		return h
	}
	whole := tarOf(t, folder, file, owned)
	for name, c := range map[string]struct {
		tar              []byte
		limit, sizeLimit int64
		plain            bool
	}{
		"nothing":                {tar: tarOf(t), plain: true},
		"files and a folder":     {tar: whole, plain: true},
		"of GNU":                 {tar: tarOf(t, with(owned, func(h *tar.Header) { h.Format = tar.FormatGNU })), plain: true},
		"no file, no end":        {plain: true},
		"no end":                 {tar: whole[:len(whole)-1024], plain: true},
		"half an end":            {tar: whole[:len(whole)-512], plain: true},
		"more behind the end":    {tar: append(bytes.Clone(whole), 'x'), plain: true},
		"one zero block":         {tar: append(make([]byte, 512), whole...)},
		"a part of a header":     {tar: whole[:len(whole)-1024-512-100]},
		"a part of a file":       {tar: whole[:len(whole)-1024-512+4]},
		"a part of the padding":  {tar: whole[:len(whole)-1024-4]},
		"at the limit":           {tar: whole, limit: int64(len(whole)), plain: true},
		"beyond the limit":       {tar: whole, limit: int64(len(whole)) - 1},
		"a file at its limit":    {tar: whole, sizeLimit: int64(len(owned.Name)), plain: true},
		"a file beyond it":       {tar: whole, sizeLimit: int64(len(owned.Name)) - 1},
		"a long name":            {tar: tarOf(t, with(file, func(h *tar.Header) { h.Name = strings.Repeat("a/", 60) + "b.rego" }))},
		"a longer name":          {tar: tarOf(t, with(file, func(h *tar.Header) { h.Name = strings.Repeat("a/", 200) + "b.rego" }))},
		"a longer name, GNU":     {tar: tarOf(t, with(file, func(h *tar.Header) { h.Name = strings.Repeat("a/", 200) + "b.rego"; h.Format = tar.FormatGNU }))},
		"a name of 100 bytes":    {tar: tarOf(t, with(file, func(h *tar.Header) { h.Name = strings.Repeat("a", 100) })), plain: true},
		"more in a header":       {tar: tarOf(t, with(file, func(h *tar.Header) { h.PAXRecords = map[string]string{"X.y": "z"} }))},
		"half a second":          {tar: tarOf(t, with(file, func(h *tar.Header) { h.ModTime = now.Add(time.Second / 2); h.Format = tar.FormatPAX }))},
		"an owner in binary":     {tar: tarOf(t, with(file, func(h *tar.Header) { h.Uid = 1 << 30; h.Format = tar.FormatGNU }))},
		"a link":                 {tar: tarOf(t, tar.Header{Name: "a", Linkname: "b", Typeflag: tar.TypeSymlink})},
		"a delta":                {tar: tarOf(t, with(file, func(h *tar.Header) { h.Name = "a/patch.json" }))},
		"headers of all at once": {tar: tarOf(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"a": "b"}}, file)},
	} {
		t.Run(name, func(t *testing.T) {
			if c.limit == 0 {
				c.limit = 1 << 20
			}
			if c.sizeLimit == 0 {
				c.sizeLimit = 1 << 20
			}
			if got := asSlowly(t, gzipped(t, c.tar), c.limit, c.sizeLimit); got != c.plain {
				t.Errorf("read at once: %v", got)
			}
		})
	}
}

// summed puts right the sums of the headers that have begun as such, so that changes are
// not refused for these alone.
func summed(b []byte) []byte {
	b = bytes.Clone(b)
	for at := 0; at+len(header{}) <= len(b); at += len(header{}) {
		if h := (*header)(b[at:]); bytes.HasPrefix(h[magicBegin:], []byte("ustar")) {
			copy(h[sumBegin:sumEnd], fmt.Sprintf("%06o\x00 ", h.sum()))
		}
	}
	return b
}

// Whatever a header says, it is read as archive/tar reads it, or not at once.
func TestChangedHeaders(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	file := tar.Header{Name: "a/b.rego", Mode: 0o600, Typeflag: tar.TypeReg}
	seeds := [][]byte{tarOf(t, file, file), tarOf(t, tar.Header{Name: "a", Mode: 0o600, Typeflag: tar.TypeReg, Format: tar.FormatGNU}, file)}
	const values = "\x00\x01 /01278LSgx\x80\xff"
	plain := 0
	const rounds = 1000
	for range rounds {
		b := bytes.Clone(seeds[r.IntN(len(seeds))])
		for range 1 + r.IntN(2) {
			b[r.IntN(len(header{}))] = values[r.IntN(len(values))]
		}
		if asSlowly(t, gzipped(t, summed(b)), 1<<20, 1<<20) {
			plain++
		}
	}
	if plain < rounds/10 || plain > rounds*9/10 {
		t.Errorf("%d of %d were read at once", plain, rounds)
	}
}

// FuzzHeaders reads any archive, of which sums are put right, as OPA's loader does.
func FuzzHeaders(f *testing.F) {
	file := tar.Header{Name: "a/b.rego", Mode: 0o600, Typeflag: tar.TypeReg}
	f.Add(tarOf(f, file, tar.Header{Name: "a/", Mode: 0o700, Typeflag: tar.TypeDir}, file))
	f.Add(tarOf(f, tar.Header{Name: "a/b.rego", Mode: 0o600, Typeflag: tar.TypeReg, Format: tar.FormatGNU, ModTime: time.Unix(1_700_000_000, 0)}))
	f.Add(tarOf(f, tar.Header{Name: strings.Repeat("a/", 100) + "b", Mode: 0o600, Typeflag: tar.TypeReg, Format: tar.FormatPAX}))
	f.Fuzz(func(t *testing.T, b []byte) {
		asSlowly(t, gzipped(t, summed(b)), 1<<16, 1<<12)
	})
}
