package pkitest_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
)

func TestLeavesAreOfTheirRoot(t *testing.T) {
	root, other := pkitest.NewRoot(t, "cluster.local"), pkitest.NewRoot(t, "cluster.local")
	leaf := root.Pair(t, pkitest.Leaf("spiffe://cluster.local/ns/a/sa/b", time.Hour)).Leaf
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/a/sa/b" {
		t.Errorf("identity %v", leaf.URIs)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: root.Pool()}); err != nil {
		t.Error(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: other.Pool()}); err == nil {
		t.Error("another root is trusted")
	}
}
