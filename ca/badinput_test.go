package ca

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// copyState copies a state directory.
func copyState(t *testing.T, from string) (to string) {
	t.Helper()
	to = filepath.Join(t.TempDir(), "state")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	// CopyFS leaves more rights than there were.
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o600)
		if d.IsDir() {
			mode = 0o700
		}
		return os.Chmod(path, mode)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// startError is why an authority does not start with a state directory; nil says that
// it does.
func (h *harness) startError(state string) error {
	h.t.Helper()
	c := h.config
	c.State, c.Listen, c.Admin = state, "", "unix://"+filepath.Join(filepath.Dir(state), "a")
	ctx, cancel := context.WithCancel(h.t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c, newRuntime()) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if _, err := os.Stat(filepath.Join(filepath.Dir(state), "a")); err == nil {
				cancel()
				if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
					return err
				}
				return nil
			}
		}
	}
}

// Files of an authority that were written by half, or that others may read: it does not
// start and names the file, which stays as it is. What it makes itself it makes anew.
func TestFilesWrittenByHalf(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	for range 3 {
		h.mint(reviewsID)
	}
	if _, err := capb.NewRootsClient(h.adminConn()).RotateRoot(t.Context(), &capb.RotateRootRequest{Compromised: true}); err != nil {
		t.Fatal(err)
	}
	h.eventually("the new root signs", func() bool {
		st, err := capb.NewRootsClient(h.adminConn()).GetRoots(t.Context(), &capb.GetRootsRequest{})
		return err == nil && st.GetRotation() == nil
	})
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	further, err := filepath.Glob(filepath.Join(h.config.State, "roots", "*.key"))
	if err != nil || len(further) != 1 {
		t.Fatal(further, err)
	}
	secrets := []string{"roots/" + filepath.Base(further[0]), "ledger.key", "jwt-keys.json"}
	for _, name := range append(secrets, "ledger.log", "ledger.checkpoint", "ledger.pub", "bundle.pem") {
		anew := name == "ledger.pub" || name == "bundle.pem"
		for _, part := range []int{0, 50, 90} { // with 90 % an entry is cut that the last checkpoint is about
			state := copyState(t, h.config.State)
			path := filepath.Join(state, name)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data = data[:len(data)*part/100]
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			err = h.startError(state)
			if anew {
				if err != nil {
					t.Errorf("%d %% of %s: %v", part, name, err)
				}
				continue
			}
			// A ledger that is cut off is found by its checkpoint.
			if err == nil || !strings.Contains(err.Error(), path) && (name != "ledger.log" || !strings.Contains(err.Error(), "ledger.checkpoint")) {
				t.Errorf("%d %% of %s: %v", part, name, err)
			}
			if after, err := os.ReadFile(path); name != "ledger.log" && (err != nil || !bytes.Equal(after, data)) {
				t.Errorf("%d %% of %s was written over: %v", part, name, err)
			}
		}
	}
	for _, name := range secrets {
		state := copyState(t, h.config.State)
		path := filepath.Join(state, name)
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if err := h.startError(state); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "mode") {
			t.Errorf("%s that others may read: %v", name, err)
		}
	}
}

// A request of 1 MB and one with a thousand names are refused to whoever sends them,
// who is in the log and the ledger if it comes that far; others do not notice.
func TestHugeRequests(t *testing.T) {
	t.Parallel()
	log := new(proctest.Output)
	h := startLogged(t, log)
	node := h.as(h.mint(nodeID))
	_, err := node.Renew(t.Context(), &capb.RenewRequest{Csr: make([]byte, 1<<20)})
	wantCode(t, err, codes.ResourceExhausted)
	_, err = node.Renew(t.Context(), &capb.RenewRequest{Csr: make([]byte, 9<<10)})
	wantCode(t, err, codes.InvalidArgument)
	_, err = node.Renew(t.Context(), &capb.RenewRequest{Csr: derOf(t, requestPEM(t, strings.Repeat("a", 4000)))})
	wantCode(t, err, codes.InvalidArgument)
	for _, want := range []string{"requester=" + nodeID, "8192"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	h.mint(reviewsID)
}

// startLogged is start with a log.
func startLogged(t *testing.T, log *proctest.Output) *harness {
	t.Helper()
	h := &harness{t: t, config: DefaultConfig()}
	dir := t.TempDir()
	h.config.TrustDomain, h.config.State = td.Name(), filepath.Join(dir, "state")
	h.config.Listen, h.config.Admin = "unix://"+filepath.Join(dir, "tls.sock"), "unix://"+filepath.Join(dir, "admin.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, h.config, &service.Runtime{Log: slog.New(slog.NewTextHandler(log, nil)), Metrics: prometheus.NewRegistry(), Health: new(service.Health)})
	}()
	t.Cleanup(func() { cancel(); <-done })
	h.eventually("the authority answers", func() bool {
		_, err := h.admin().GetBundle(t.Context(), &capb.GetBundleRequest{})
		return err == nil
	})
	return h
}

func derOf(t *testing.T, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes
}
