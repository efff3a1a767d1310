package stack

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
)

// A service gets a new token when its certificate has expired, and when its root is
// not in the bundle any more; what cannot be read is no reason.
func TestUseless(t *testing.T) {
	root, other := pkitest.NewRoot(t, "cluster.local"), pkitest.NewRoot(t, "cluster.local")
	dir := t.TempDir()
	put := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certPEM, keyPEM := root.Issue(t, pkitest.Leaf("spiffe://cluster.local/writ/pilot", time.Hour))
	cert, bundle := put("identity.pem", append(certPEM, keyPEM...)), put("bundle.pem", root.PEM())
	both, foreign := put("both.pem", append(other.PEM(), root.PEM()...)), put("other.pem", other.PEM())
	for _, tc := range []struct {
		name, cert, bundle string
		after              time.Duration
		want               bool
	}{
		{"good", cert, bundle, 0, false},
		{"during a rotation", cert, both, 0, false},
		{"expired", cert, bundle, 2 * time.Hour, true},
		{"root dropped", cert, foreign, 0, true},
		{"no bundle", cert, filepath.Join(dir, "none"), 0, false},
		{"no bundle, expired", cert, filepath.Join(dir, "none"), 2 * time.Hour, true},
		{"no certificate", filepath.Join(dir, "none"), bundle, 0, false},
		{"no certificate at all", bundle[:0], bundle, 0, false},
	} {
		if got := useless(tc.cert, tc.bundle, time.Now().Add(tc.after)); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
