//go:build !pkcs11 || !cgo

package kms

import (
	"strings"
	"testing"
)

// TestWithoutC: the programs as they are shipped say what they lack.
func TestWithoutC(t *testing.T) {
	_, err := Open(t.Context(), module+"token=writ;object=root", "")
	if want := "-tags pkcs11"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
