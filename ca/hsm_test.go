//go:build pkcs11 && cgo

package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/kms"
	"github.com/writ-mesh/writ/ca/plugged"
	"github.com/writ-mesh/writ/ca/root"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const tokenPIN = "8642097531"

// hsm makes a token of SoftHSM and gives the URI of a key in it that is not there
// yet, and the file with the PIN.
func hsm(t *testing.T) (key, pinFile string) {
	t.Helper()
	module := ""
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			module = path
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if module == "" || err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("SoftHSM is missing: hack/install-servers.sh installs softhsm2")
		}
		t.Skip("SoftHSM (softhsm2) is missing")
	}
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	if out, err := exec.CommandContext(t.Context(), util, "--module", module, "--init-token", "--free", "--label", "writ", "--so-pin", "1234567890", "--pin", tokenPIN).CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
	pinFile = filepath.Join(dir, "pin")
	if err := os.WriteFile(pinFile, []byte(tokenPIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return "pkcs11:module-path=" + module + ";token=writ;object=root", pinFile
}

// TestHSM: the key of an own root, and of the one that follows it, is in the token
// and nowhere else.
func TestHSM(t *testing.T) {
	key, pin := hsm(t)
	h := start(t, func(c *Config) { c.Authority.KMS, c.Authority.PINFile = key, pin })
	first := h.active()
	svid := h.mint(reviewsID)
	h.restart()
	if h.active() != first {
		t.Fatalf("another root after a restart: %s, was %s", h.active(), first)
	}
	if _, err := capb.NewRootsClient(h.adminConn()).RotateRoot(t.Context(), &capb.RotateRootRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	h.eventually("the new root signs alone", func() bool {
		st := h.rootsNow()
		return len(st.GetRoots()) == 1 && st.GetRoots()[0].GetKeyId() != first
	})
	second := h.mint(reviewsID)
	if bytes.Equal(second.Certificates[0].AuthorityKeyId, svid.Certificates[0].AuthorityKeyId) {
		t.Error("the old root signs")
	}
	h.restart()
	h.mint(ratingsID)
	err := filepath.WalkDir(h.config.State, func(path string, d os.DirEntry, err error) error {
		if err == nil && (d.Name() == root.KeyFile || strings.HasSuffix(path, ".key") && d.Name() != "ledger.key") {
			t.Errorf("%s: a key outside the token", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestHSMWithFiles: the certificate is somebody else's, its key in the token.
func TestHSMWithFiles(t *testing.T) {
	key, pin := hsm(t)
	keys, err := kms.Open(t.Context(), key, pin)
	if err != nil {
		t.Fatal(err)
	}
	uri, signer, err := keys.Make()
	if err != nil {
		t.Fatal(err)
	}
	top := newForeign(t, "root", nil, time.Hour)
	issuing := newForeign(t, "issuing", top, time.Hour)
	template := *issuing.cert
	template.SubjectKeyId = []byte{1, 2, 3}
	der, err := x509.CreateCertificate(rand.Reader, &template, top.cert, signer.Public(), top.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range map[string][]byte{plugged.CertFile: root.PEM(cert), plugged.RootFile: root.PEM(top.cert)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := keys.Close(); err != nil {
		t.Fatal(err)
	}
	h := start(t, func(c *Config) { c.Authority.Files, c.Authority.KMS, c.Authority.PINFile = dir, uri, pin })
	if svid := h.mint(reviewsID); len(svid.Certificates) != 2 || !svid.Certificates[1].Equal(cert) {
		t.Error("the certificate is not under the one of the files")
	}
}

// TestHSMErrors: what is wrong with token, key or PIN is said, and the PIN is not.
func TestHSMErrors(t *testing.T) {
	key, pin := hsm(t)
	keys, err := kms.Open(t.Context(), key, pin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Find(key); !errors.Is(err, kms.ErrNoKey) {
		t.Errorf("a key that is not there: %v", err)
	}
	if err := keys.Close(); err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrong, []byte("8642097532"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ key, pin, want string }{
		"wrong PIN":    {key, wrong, "CKR_PIN_INCORRECT"},
		"no token":     {strings.Replace(key, "token=writ", "token=other", 1), pin, "token=other"},
		"no module":    {"pkcs11:module-path=/nonexistent.so;token=writ;object=root", pin, "/nonexistent.so"},
		"no such file": {key, wrong + "2", wrong + "2"},
	} {
		var log bytes.Buffer
		rt := newRuntime()
		rt.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c := DefaultConfig()
		c.State, c.Authority.KMS, c.Authority.PINFile = filepath.Join(t.TempDir(), "state"), tc.key, tc.pin
		err := Run(t.Context(), c, rt)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "authority.kms") {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error()+log.String(), "864209753") {
			t.Errorf("%s: the PIN is told", name)
		}
	}
}
