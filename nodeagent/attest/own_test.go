package attest_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/proxysecret"
)

// secretOf is the secret of a proxy's bootstrap.
func secretOf(proxyID string) string { return "TheSecretOf" + proxyID }

// secretive is an attestor that knows proxies' secrets.
func secretive(t *testing.T, dir string) *attest.Attestor {
	t.Helper()
	a := attest.New(t.Context(), attest.Config{
		Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Dir: dir, Wait: time.Millisecond,
		Secret: func(proxyID, secret string) bool { return secret == secretOf(proxyID) }, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(a.Close)
	return a
}

// call makes a call of c that shows secrets.
func call(t *testing.T, a *attest.Attestor, c attest.Caller, secrets ...string) (own bool, err error) {
	t.Helper()
	md := metadata.MD{}
	md.Append(proxysecret.Header, secrets...)
	l, err := a.AttestCaller(attest.Calling(metadata.NewIncomingContext(t.Context(), md), c))
	if err != nil {
		if status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), secretOf("sidecar~")) {
			t.Fatalf("%v: want PERMISSION_DENIED without the secret", err)
		}
		return false, err
	}
	l.Release()
	return l.Own, nil
}

func TestWhoHasShownTheSecretIsBelievedNothingWithoutIt(t *testing.T) {
	dir := t.TempDir()
	a := secretive(t, dir)
	place(t, a, workload("web", nil), workload("db", nil))
	envoyPID, end := start(t)
	programPID, _ := start(t)
	for _, pid := range []int32{envoyPID, programPID} {
		if err := a.Register(t.Context(), pid, proxyID("web")); err != nil {
			t.Fatal(err)
		}
	}
	envoy, program := caller(t, envoyPID, 1), caller(t, programPID, 1)
	want := func(what string, c attest.Caller, own, ok bool, secrets ...string) {
		t.Helper()
		if got, err := call(t, a, c, secrets...); got != own || (err == nil) != ok {
			t.Errorf("%s: own %t, %v", what, got, err)
		}
	}
	right := secretOf(proxyID("web"))
	want("before it shows one", envoy, false, true)
	want("its secret", envoy, true, true, right)
	want("again", envoy, true, true, right)
	want("without", envoy, false, false)
	want("another proxy's", envoy, false, false, secretOf(proxyID("db")))
	want("two", envoy, false, false, right, right)
	want("empty", envoy, false, false, "")
	want("the program beside it", program, false, true)

	// The agent starts again.
	a.Close()
	a = secretive(t, dir)
	want("without, after a restart", envoy, false, false)
	want("its secret, after a restart", envoy, true, true, right)
	want("the program, after a restart", program, false, true)
	if n := a.Envoys(); n != 1 {
		t.Errorf("%d processes are held", n)
	}
	end()
	proctest.Eventually(t, 10*time.Second, func() error {
		if n := a.Envoys(); n != 0 {
			return fmt.Errorf("%d processes are held after it has ended", n)
		}
		return nil
	})

	// Who shows a wrong one is an Envoy as well, perhaps with a bootstrap of before.
	want("a wrong one", program, false, false, "something")
	want("and then none", program, false, false)
}

// TestUnseenProcess: of who cannot be told from the Envoy of his user the secret is wanted always.
func TestUnseenProcess(t *testing.T) {
	a := secretive(t, t.TempDir())
	uid := uint32(7)
	place(t, a, workload("web", &uid))
	register(t, a, registration("r1", billing, "unix:uid:8"))
	for name, tc := range map[string]struct {
		uid     uint32
		secrets []string
		own, ok bool
	}{
		"without":                      {7, nil, false, false},
		"with":                         {7, []string{secretOf(proxyID("web"))}, true, true},
		"with another's":               {7, []string{secretOf(proxyID("db"))}, false, false},
		"of a user who is no proxy's":  {8, nil, false, true},
		"of one who is nobody, with":   {9, []string{secretOf(proxyID("web"))}, false, false},
		"a registered one's, with one": {8, []string{secretOf(proxyID("web"))}, false, false},
	} {
		if own, err := call(t, a, attest.Caller{UID: tc.uid}, tc.secrets...); own != tc.own || (err == nil) != tc.ok {
			t.Errorf("%s: own %t, %v", name, own, err)
		}
	}
	if n := a.Envoys(); n != 0 {
		t.Errorf("%d processes are held", n)
	}
}

// TestWithoutAKeyNobodyIsAnEnvoy: an attestor that knows no secrets takes none.
func TestWithoutAKeyNobodyIsAnEnvoy(t *testing.T) {
	a := impatient(t)
	place(t, a, workload("web", nil))
	pid, _ := start(t)
	if err := a.Register(t.Context(), pid, proxyID("web")); err != nil {
		t.Fatal(err)
	}
	if own, err := call(t, a, caller(t, pid, 1), ""); own || err == nil {
		t.Errorf("own %t, %v", own, err)
	}
}

// TestListOfEnvoysFromElsewhere: what is stored counts for the process of that start time only, and not if it is damaged.
func TestListOfEnvoysFromElsewhere(t *testing.T) {
	pid, _ := start(t)
	for name, change := range map[string]func(*attest.Caller, string) error{
		"whole":                 func(*attest.Caller, string) error { return nil },
		"another process of it": func(c *attest.Caller, _ string) error { c.StartTime++; return nil },
		"damaged":               func(_ *attest.Caller, path string) error { return os.WriteFile(path, []byte("WRITENV1"), 0o600) },
	} {
		dir := t.TempDir()
		first := secretive(t, dir)
		uid := uint32(7)
		place(t, first, workload("web", &uid))
		c := caller(t, pid, uid)
		if own, err := call(t, first, c, secretOf(proxyID("web"))); !own || err != nil {
			t.Fatal(err)
		}
		first.Close()
		if err := change(&c, filepath.Join(dir, "envoys")); err != nil {
			t.Fatal(err)
		}
		a := secretive(t, dir)
		if want := map[bool]int{true: 0, false: 1}[name == "damaged"]; a.Envoys() != want {
			t.Errorf("%s: %d processes are held, want %d", name, a.Envoys(), want)
		}
		_, err := call(t, a, c)
		if refused := err != nil; refused != (name == "whole") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestManyCallsOfAnEnvoyAtOnce: none is answered before the process is remembered on disk.
func TestManyCallsOfAnEnvoyAtOnce(t *testing.T) {
	dir := t.TempDir()
	a := secretive(t, dir)
	place(t, a, workload("web", nil))
	pid, _ := start(t)
	if err := a.Register(t.Context(), pid, proxyID("web")); err != nil {
		t.Fatal(err)
	}
	c := caller(t, pid, 1)
	ctx := attest.Calling(metadata.NewIncomingContext(context.Background(), metadata.Pairs(proxysecret.Header, secretOf(proxyID("web")))), c)
	done := make(chan error)
	for range 20 {
		go func() {
			l, err := a.AttestCaller(ctx)
			if err == nil {
				l.Release()
				_, err = os.Stat(filepath.Join(dir, "envoys"))
			}
			done <- err
		}()
	}
	for range 20 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := a.Envoys(); n != 1 {
		t.Errorf("%d processes are held", n)
	}
}
