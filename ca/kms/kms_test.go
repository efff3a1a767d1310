package kms

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const module = "pkcs11:module-path=/usr/lib/softhsm/libsofthsm2.so;"

func TestValid(t *testing.T) {
	for key, want := range map[string]string{
		module + "token=writ;object=root":                     "",
		module + "serial=12;object=root":                      "",
		module + "slot-id=3;object=root;id=%01":               "",
		"":                                                    "no URI of a PKCS #11 key",
		"/usr/lib/module.so":                                  "no URI of a PKCS #11 key",
		"awskms:key-id=1":                                     "no URI of a PKCS #11 key",
		"pkcs11:token=writ;object=root":                       "module-path=FILE",
		module + "object=root":                                "token=LABEL",
		module + "token=writ":                                 "object=LABEL",
		module + "token=writ;object=root?pin-value=1234":      "authority.pin_file",
		module + "token=writ;object=root?pin-source=/etc/pin": "authority.pin_file",
		module + "token=writ;object=root;pin-value=1234":      "authority.pin_file",
		module + "token=writ;object=%zz":                      "no URI of a PKCS #11 key",
	} {
		err := Valid(key)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", key, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", key, err, want)
		case err != nil && strings.Contains(err.Error(), "1234"):
			t.Errorf("%s: the error holds the PIN", key)
		}
	}
}

func TestPIN(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	put := func(s string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	put("97531\n", 0o600)
	if pin, err := readPIN(path); err != nil || pin != "97531" {
		t.Errorf("got %q, %v", pin, err)
	}
	if pin, err := readPIN(""); err != nil || pin != "" {
		t.Errorf("no file: got %q, %v", pin, err)
	}
	for name, bad := range map[string]func(){
		"wider mode": func() { put("97531\n", 0o640) },
		"empty":      func() { put("\n", 0o600) },
		"two lines":  func() { put("97531\n97532\n", 0o600) },
		"too long":   func() { put(strings.Repeat("97531", 100), 0o600) },
		"missing": func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		put("x", 0o600)
		bad()
		if _, err := readPIN(path); err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "9753") {
			t.Errorf("%s: got %v, want an error that names the file and not the PIN", name, err)
		}
	}
}
