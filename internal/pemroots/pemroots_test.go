package pemroots_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/pemroots"
	"github.com/writ-mesh/writ/internal/pkitest"
)

// TestLoad: all certificates of a file are in the pool, or there is no pool.
func TestLoad(t *testing.T) {
	one, two := pkitest.NewRoot(t, "").PEM(), pkitest.NewRoot(t, "").PEM()
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	for name, c := range map[string]struct {
		text  []byte
		roots int
		err   string
	}{
		"one":            {one, 1, ""},
		"two":            {bytes.Join([][]byte{[]byte("# of the shop\n"), one, key, []byte("\n"), two}, nil), 2, ""},
		"empty":          {nil, 0, "no PEM certificate"},
		"something else": {key, 0, "no PEM certificate"},
		"broken":         {append(bytes.Clone(one), broken...), 0, "certificate 2 cannot be read"},
		"cut off":        {append(bytes.Clone(one), two[:len(two)/2]...), 0, "one of 2 certificates is damaged or cut off"},
		"cut off before": {append(bytes.Clone(one[:len(one)/2]), append([]byte("\n"), two...)...), 0, "one of 2 certificates is damaged or cut off"},
		"damaged before": {append(bytes.Replace(one, []byte("M"), []byte("*"), 1), two...), 0, "one of 2 certificates is damaged or cut off"},
		"too large":      {append(bytes.Clone(one), bytes.Repeat([]byte("\n"), 1<<20)...), 0, "too many"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "roots.pem")
			if err := os.WriteFile(path, c.text, 0o600); err != nil {
				t.Fatal(err)
			}
			pool, err := pemroots.Load(path)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), path) {
					t.Errorf("%v, want %q and the file's name", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := len(pool.Subjects()); n != c.roots { //nolint:staticcheck // it is no pool of the system
				t.Errorf("%d roots, want %d", n, c.roots)
			}
		})
	}
	if _, err := pemroots.Load(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
}
