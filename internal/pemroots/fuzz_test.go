package pemroots_test

import (
	"bytes"
	"encoding/pem"
	"testing"

	"github.com/writ-mesh/writ/internal/pemroots"
	"github.com/writ-mesh/writ/internal/pkitest"
)

// FuzzParse reads any text: what is taken has as many certificates as it begins.
func FuzzParse(f *testing.F) {
	root := pkitest.NewRoot(f, "example.org").PEM()
	for _, seed := range [][]byte{root, append(root[:len(root):len(root)], root...), root[:len(root)/2], []byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("# roots\n"), nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		pool, err := pemroots.Parse(text)
		if (pool == nil) != (err != nil) {
			t.Fatalf("%v and %v", pool, err)
		}
		if err == nil {
			if block, _ := pem.Decode(text); block == nil || !bytes.Contains(text, []byte("CERTIFICATE")) {
				t.Errorf("roots of %q", text)
			}
		}
	})
}
