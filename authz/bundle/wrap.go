package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/writ-mesh/writ/authz/unpack"
)

// A bundle that comes by HTTP is put into another archive as its only file before OPA's
// downloader gets it. OPA's reader would start a goroutine for each module at once, and
// those would run before the ones of requests; so it has nothing to parse, keeps the
// archive on disk, if it is to, as it has it, and what is in it is read when it is
// activated, which is ours.
const (
	// wrappedName is a file that OPA's reader does not look into.
	wrappedName = "data.json"
	// wrappedMagic begins the file, so that no JSON is taken for it.
	wrappedMagic = "writ: an archive\n"
)

// wrap makes the archive around an archive. It never fails: it writes to memory.
func wrap(archive []byte) []byte {
	var out bytes.Buffer
	out.Grow(len(archive) + len(archive)>>10 + 4<<10)
	z, _ := gzip.NewWriterLevel(&out, gzip.NoCompression)
	w := tar.NewWriter(z)
	_ = w.WriteHeader(&tar.Header{Name: wrappedName, Mode: 0o600, Size: int64(len(wrappedMagic) + len(archive)), Typeflag: tar.TypeReg})
	_, _ = w.Write([]byte(wrappedMagic))
	_, _ = w.Write(archive)
	_ = w.Close()
	_ = z.Close()
	return out.Bytes()
}

// unwrap gives the archive in what OPA's reader made of what wrap made.
func unwrap(b *opabundle.Bundle) ([]byte, bool) {
	if len(b.Raw) != 1 || len(b.Modules) != 0 || b.Raw[0].Path != wrappedName {
		return nil, false
	}
	return bytes.CutPrefix(b.Raw[0].Value, []byte(wrappedMagic))
}

// wrappable says that an answer is a bundle that OPA's downloader asked for. What is not
// packed is none, and OPA's reader says so.
func wrappable(req *http.Request, resp *http.Response, body []byte) bool {
	return req.Method == http.MethodGet && resp.StatusCode == http.StatusOK &&
		strings.HasPrefix(req.Header.Get("Prefer"), "modes=") && bytes.HasPrefix(body, []byte(unpack.GzipMagic))
}
