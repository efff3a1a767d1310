package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// watcher is a node agent or service that follows the bundle and acknowledges what
// the test says.
type watcher struct {
	h      *harness
	id     string
	svid   *x509svid.SVID
	stream grpc.BidiStreamingClient[capb.WatchBundleRequest, capb.Bundle]
	bundle atomic.Pointer[capb.Bundle]
}

func (h *harness) watcher(id string) *watcher {
	h.t.Helper()
	w := &watcher{h: h, id: id, svid: h.mint(id)}
	var err error
	if w.stream, err = h.as(w.svid).WatchBundle(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		for {
			b, err := w.stream.Recv()
			if err != nil {
				return
			}
			w.bundle.Store(b)
		}
	}()
	h.eventually("the bundle is there", func() bool { return w.bundle.Load() != nil })
	return w
}

// says acknowledges the newest bundle, or an older one, with proxies waiting.
func (w *watcher) says(sequence uint64, authority string, waiting ...string) {
	w.h.t.Helper()
	if err := w.stream.Send(&capb.WatchBundleRequest{Acknowledged: sequence, Authorities: []string{authority}, Waiting: waiting}); err != nil {
		w.h.t.Fatal(err)
	}
}

// has waits for a bundle with that many roots and gives its sequence.
func (w *watcher) has(roots int) *capb.Bundle {
	w.h.t.Helper()
	w.h.eventually(fmt.Sprint(w.id, " has a bundle with ", roots, " roots"), func() bool { return len(w.bundle.Load().GetRoots()) == roots })
	return w.bundle.Load()
}

func (h *harness) roots() capb.RootsClient { return capb.NewRootsClient(h.adminConn()) }

func (h *harness) status() *capb.RootsStatus {
	h.t.Helper()
	st, err := h.roots().GetRoots(h.t.Context(), &capb.GetRootsRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

func (h *harness) rotate(req *capb.RotateRootRequest) *capb.RootsStatus {
	h.t.Helper()
	st, err := h.roots().RotateRoot(h.t.Context(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

// step waits until the rotation is at a step, 0 for none under way.
func (h *harness) step(want capb.RotationStep) *capb.RootsStatus {
	h.t.Helper()
	var st *capb.RootsStatus
	h.eventually(fmt.Sprint("the rotation is at ", want), func() bool { st = h.status(); return st.GetRotation().GetStep() == want })
	return st
}

func gateOf(st *capb.RootsStatus) string {
	var out []string
	for _, h := range st.GetRotation().GetGate() {
		out = append(out, h.GetHolder()+" "+h.GetReason()+" "+strings.Join(h.GetProxies(), ","))
	}
	return strings.Join(out, "; ")
}

func activeOf(st *capb.RootsStatus) string {
	for _, r := range st.GetRoots() {
		if r.GetActive() {
			return r.GetKeyId()
		}
	}
	return ""
}

const n2ID = "spiffe://example.org/writ/node/n2"

// One agent held back keeps the gate shut and is named, with the proxies that it
// waits for; so is one that still has certificates of the old root.
func TestRotationWaitsForEveryHolder(t *testing.T) {
	h := start(t, nil)
	before := h.bundle().X509Authorities()[0]
	old := root.KeyID(before)
	n1, n2, pilot := h.watcher(nodeID), h.watcher(n2ID), h.watcher(pilotID)
	for _, w := range []*watcher{n1, n2, pilot} {
		w.says(w.has(1).GetSequence(), old)
	}
	h.rotate(&capb.RotateRootRequest{})
	for _, w := range []*watcher{n1, n2, pilot} {
		if b := w.has(2); b.GetActiveAuthority() != old {
			t.Fatalf("%s is to use %s", w.id, b.GetActiveAuthority())
		}
	}
	first := n2.bundle.Load().GetSequence()
	n1.says(first, old)
	pilot.says(first, old)
	n2.says(first-1, old, "sidecar~127.0.0.1~reviews-1.default~default.svc.cluster.local")
	want := n2ID + " has not acknowledged bundle 2 sidecar~127.0.0.1~reviews-1.default~default.svc.cluster.local"
	h.eventually("only n2 holds it up", func() bool { return gateOf(h.status()) == want })
	// Nobody else's word counts for it, and the old root signs on.
	n1.says(first+100, old)
	for range 3 {
		if issuerOf(h.mint(reviewsID).Certificates[0]) != old {
			t.Fatal("the new root signs already")
		}
	}
	if got := gateOf(h.status()); got != want {
		t.Fatalf("gate: %s", got)
	}
	n2.says(first, old)
	st := h.step(capb.RotationStep_ROTATION_STEP_DRAINING)
	fresh := activeOf(st)
	if fresh == old || issuerOf(h.mint(ratingsID).Certificates[0]) != fresh {
		t.Fatalf("%s signs", fresh)
	}
	second := n1.bundle.Load
	h.eventually("they are told", func() bool { return second().GetActiveAuthority() == fresh })
	now := second().GetSequence()
	for _, w := range []*watcher{n1, pilot} {
		w.says(now, fresh)
	}
	n2.says(now, old)
	// The certificates that were minted for reviews have nobody who renews them.
	h.eventually("n2 and the minted ones hold it up", func() bool {
		return gateOf(h.status()) == reviewsID+" has a certificate of the old root and nobody who renews it ; "+n2ID+" uses certificates of the old root "
	})
	n2.says(now, fresh)
	h.eventually("the minted ones hold it up", func() bool { return !strings.Contains(gateOf(h.status()), n2ID) })
	if _, err := h.roots().AbortRotation(t.Context(), &capb.AbortRotationRequest{}); err == nil {
		t.Error("a root that signs was aborted")
	} else {
		wantCode(t, err, codes.FailedPrecondition)
	}
	h.rotate(&capb.RotateRootRequest{Force: true})
	st = h.step(capb.RotationStep_ROTATION_STEP_UNSPECIFIED)
	if last := st.GetLast(); last.GetStep() != capb.RotationStep_ROTATION_STEP_DONE || len(last.GetSkipped()) != 1 || last.GetSkipped()[0].GetHolder() != reviewsID {
		t.Errorf("ended with %v", last)
	}
	h.onlyRoot(fresh)
	if got := h.steps(); !slices.Equal(got, []string{"first", "prepare", "activate", "continue", "retire"}) {
		t.Errorf("the ledger has the steps %v", got)
	}
	_, err := h.as(n1.svid).Renew(t.Context(), &capb.RenewRequest{})
	wantCode(t, err, codes.Unavailable) // a certificate of the old root opens no connection
}

// onlyRoot checks the files after a rotation.
func (h *harness) onlyRoot(keyID string) {
	h.t.Helper()
	// The files follow what is in force.
	h.eventually("the bundle's file has the new root alone", func() bool {
		got := h.bundle().X509Authorities()
		return len(got) == 1 && root.KeyID(got[0]) == keyID
	})
	for _, name := range []string{root.KeyFile, root.CertFile} {
		if _, err := os.Stat(filepath.Join(h.config.State, name)); !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("%s of the old root is still there: %v", name, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(h.config.State, "roots"))
	if err != nil || len(entries) != 1 || entries[0].Name() != keyID+".key" {
		h.t.Errorf("keys: %v, %v", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
		h.t.Errorf("mode of the key: %v, %v", info.Mode(), err)
	}
}

// steps are those of the rotations in the ledger.
func (h *harness) steps() []string {
	h.t.Helper()
	stream, err := capb.NewLedgerClient(h.adminConn()).ReadEntries(h.t.Context(), &capb.ReadEntriesRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		e, err := ledger.Record{Leaf: r.GetEntry()}.Entry()
		if err != nil {
			h.t.Fatal(err)
		}
		if e.Kind == ledger.Rotated {
			out = append(out, e.Detail["step"])
		}
	}
}

func TestRotationIsAborted(t *testing.T) {
	h := start(t, nil)
	old := activeOf(h.status())
	n1 := h.watcher(nodeID)
	h.rotate(&capb.RotateRootRequest{})
	n1.has(2)
	if _, err := h.roots().AbortRotation(t.Context(), &capb.AbortRotationRequest{}); err != nil {
		t.Fatal(err)
	}
	if b := n1.has(1); b.GetActiveAuthority() != old {
		t.Errorf("%s signs", b.GetActiveAuthority())
	}
	if entries, err := os.ReadDir(filepath.Join(h.config.State, "roots")); err != nil || len(entries) != 0 {
		t.Errorf("keys that nobody needs: %v, %v", entries, err)
	}
	_, err := h.roots().AbortRotation(t.Context(), &capb.AbortRotationRequest{})
	wantCode(t, err, codes.FailedPrecondition)
}

// A manual rotation stops at each gate, also an open one, and over a restart.
func TestManualRotation(t *testing.T) {
	h := start(t, func(c *Config) { c.Listen = "" })
	manual := &capb.RotateRootRequest{Manual: true}
	h.rotate(manual)
	h.restart()
	if st := h.status(); st.GetRotation().GetStep() != capb.RotationStep_ROTATION_STEP_DISTRIBUTING || gateOf(st) != "" {
		t.Fatalf("%v", st)
	}
	h.rotate(manual)
	h.step(capb.RotationStep_ROTATION_STEP_DRAINING)
	h.restart()
	if st := h.status(); st.GetRotation().GetStep() != capb.RotationStep_ROTATION_STEP_DRAINING {
		t.Fatalf("%v", st)
	}
	h.rotate(manual)
	h.onlyRoot(activeOf(h.step(capb.RotationStep_ROTATION_STEP_UNSPECIFIED)))
}

// An earlier version's watcher ends its side of the stream at once. It is told of
// bundles, and holds the gate as one that has acknowledged nothing.
func TestWatcherThatSaysNothing(t *testing.T) {
	h := start(t, nil)
	w := h.watcher(nodeID)
	if err := w.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	h.rotate(&capb.RotateRootRequest{})
	w.has(2)
	if got := gateOf(h.status()); !strings.HasPrefix(got, nodeID+" has not acknowledged bundle 2") {
		t.Errorf("gate: %s", got)
	}
	liar := h.watcher(n2ID)
	if err := liar.stream.Send(&capb.WatchBundleRequest{Authorities: make([]string, maxAuthorities+1)}); err != nil {
		t.Fatal(err)
	}
	h.eventually("who says too much is not listened to", func() bool { return strings.Contains(gateOf(h.status()), n2ID+" is not connected") })
}

// The thief of the old root's key has made himself a node's certificate and is
// connected. After a rotation of a compromised root a genuine caller renews over the
// connection that he has, the forger does not, and the old root opens nothing.
func TestCompromisedRoot(t *testing.T) {
	h := start(t, nil)
	genuine := h.mint(nodeID)
	forged := h.forge(n2ID)
	honest, thief := h.as(genuine), h.as(forged)
	key, der := request(t, "")
	if _, err := thief.Renew(t.Context(), &capb.RenewRequest{Csr: der}); err != nil {
		t.Fatalf("before the rotation the forged certificate is as good as any: %v", err)
	}
	if _, err := honest.Renew(t.Context(), &capb.RenewRequest{Csr: der}); err != nil {
		t.Fatal(err)
	}
	h.rotate(&capb.RotateRootRequest{Compromised: true})
	st := h.step(capb.RotationStep_ROTATION_STEP_UNSPECIFIED)
	h.onlyRoot(activeOf(st))
	if skipped := st.GetLast().GetSkipped(); len(skipped) != 2 {
		t.Errorf("not waited for: %v", skipped)
	}
	_, err := thief.Renew(t.Context(), &capb.RenewRequest{Csr: der})
	wantCode(t, err, codes.Unauthenticated)
	resp, err := honest.Renew(t.Context(), &capb.RenewRequest{Csr: der})
	if err != nil {
		t.Fatal(err)
	}
	if svid := h.svid(resp, key); issuerOf(svid.Certificates[0]) != activeOf(st) {
		t.Error("the new certificate is not of the new root")
	}
	for _, svid := range []*x509svid.SVID{genuine, forged} {
		_, err := h.as(svid).Renew(t.Context(), &capb.RenewRequest{Csr: der})
		wantCode(t, err, codes.Unavailable) // no TLS handshake
	}
}

// forge makes a certificate with the key of the root, past the authority.
func (h *harness) forge(id string) *x509svid.SVID {
	h.t.Helper()
	first, err := root.Open(h.t.Context(), h.config.State, root.Spec{TrustDomain: td, InUse: true}, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	key, _ := request(h.t, "")
	uri, err := url.Parse(id)
	if err != nil {
		h.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}, first.Cert, key.Public(), first.Key)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.svid(&capb.CertificateResponse{Chain: [][]byte{der}}, key)
}

// While roots are replaced one after the other, issuing never stops, and no
// certificate comes with a bundle that does not have its root.
func TestIssuingGoesOnDuringRotations(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.Listen = "" })
	stop := make(chan struct{})
	var issued atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for range 4 {
		wg.Go(func() {
			client := h.admin()
			_, der := request(t, "")
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := client.Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der})
				if err != nil {
					// A forced rotation drops a root while certificates of it are on
					// their way out; they are not handed out then.
					if !strings.Contains(err.Error(), "the root was replaced just now") {
						t.Errorf("issuing stopped: %v", err)
					}
					continue
				}
				if err := covered(resp); err != nil {
					t.Error(err)
				}
				issued.Add(1)
			}
		})
	}
	for range 6 {
		before := issued.Load()
		h.eventually("something is issued", func() bool { return issued.Load() > before+5 })
		h.rotate(&capb.RotateRootRequest{Force: true})
		h.step(capb.RotationStep_ROTATION_STEP_UNSPECIFIED)
	}
}

// covered verifies the certificate of a response by the bundle of the response.
func covered(resp *capb.CertificateResponse) error {
	cert, err := x509.ParseCertificate(resp.GetChain()[0])
	if err != nil {
		return err
	}
	bundle := x509bundle.New(td)
	for _, der := range resp.GetBundle().GetRoots() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		bundle.AddX509Authority(c)
	}
	_, _, err = x509svid.Verify([]*x509.Certificate{cert}, bundle)
	return err
}

// dyingStore lets the process die at the n-th change of the roots: before it is
// durable, or after.
type dyingStore struct {
	*ledgertest.Memory
	left  int
	after bool
}

var errDied = errors.New("the process died here")

func (s *dyingStore) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	if c.Entry.Kind != ledger.Rotated {
		return s.Memory.Commit(ctx, c)
	}
	s.left--
	if s.left < 0 || s.left == 0 && !s.after {
		return 0, errDied
	}
	v, err := s.Memory.Commit(ctx, c)
	if s.left == 0 {
		return 0, errDied
	}
	return v, err
}

// Whatever change of a rotation the authority dies in, before or after it is
// durable: it starts again, with one key for each root of the bundle and no others,
// signs what the bundle covers, and the rotation goes on to its end.
func TestDeathAtEachStepOfARotation(t *testing.T) {
	steps := []string{"first", "prepare", "activate", "retire"}
	for n, step := range steps {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %v", step, after), func(t *testing.T) {
				dir, store := t.TempDir(), ledgertest.NewMemory()
				dying := &dyingStore{Memory: store, left: n + 1, after: after}
				if a, err := reopen(t, dir, dying); err == nil {
					drive(t.Context(), a)
				}
				if dying.left > 0 {
					t.Fatalf("it did not get there, %d changes are left", dying.left)
				}
				a, err := reopen(t, dir, store)
				if err != nil {
					t.Fatal(err)
				}
				sound(t, a, dir)
				for range 4 {
					drive(t.Context(), a)
					sound(t, a, dir)
				}
				if last := a.trusted().state.Last; last == nil || last.Step != roots.Done || len(a.trusted().roots) != 1 {
					t.Errorf("ended with %+v", a.trusted().state)
				}
			})
			// A process that lives on after such an error finds out what is durable.
			t.Run(fmt.Sprintf("%s, after %v, lives on", step, after), func(t *testing.T) {
				dir := t.TempDir()
				dying := &dyingStore{Memory: ledgertest.NewMemory(), left: n + 1, after: after}
				a, err := reopen(t, dir, dying)
				if err != nil {
					return // at the first start there is nothing to go on with
				}
				drive(t.Context(), a)
				dying.left = 1000
				for range 4 {
					drive(t.Context(), a)
					sound(t, a, dir)
				}
				if last := a.trusted().state.Last; last == nil || last.Step != roots.Done {
					t.Errorf("ended with %+v", a.trusted().state)
				}
			})
		}
	}
}

// reopen starts an authority without its listeners.
func reopen(t *testing.T, dir string, store ledger.Store) (*Authority, error) {
	t.Helper()
	return reopenWith(t, dir, store, func(*Config) {})
}

// reopenWith starts one with another configuration.
func reopenWith(t *testing.T, dir string, store ledger.Store, change func(*Config)) (*Authority, error) {
	t.Helper()
	c := DefaultConfig()
	c.TrustDomain, c.State = td.Name(), dir
	change(&c)
	_, inUse, err := lastEntry(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	return open(t.Context(), c, store, inUse, newMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
}

// drive begins a rotation, unless one was done, and takes it as far as it goes.
func drive(ctx context.Context, a *Authority) {
	if s := a.trusted().state; s.Rotation == nil && s.Last == nil {
		_ = a.keeper.rotate(ctx, "admin uid=0", roots.How{})
	}
	for range 3 {
		if t := a.trusted(); t.state.Rotation != nil {
			a.keeper.step(ctx, t)
		}
	}
}

// TestStepOfARotationThatIsOver: a rotation may be taken back, here or by another replica,
// between the look at it and the step.
func TestStepOfARotationThatIsOver(t *testing.T) {
	a, err := reopen(t, t.TempDir(), ledgertest.NewMemory())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.keeper.rotate(t.Context(), "admin uid=0", roots.How{Force: true}); err != nil {
		t.Fatal(err)
	}
	seen := a.trusted()
	if err := a.keeper.abort(t.Context(), "admin uid=0"); err != nil {
		t.Fatal(err)
	}
	after := a.trusted().state
	a.keeper.step(t.Context(), seen)
	if now := a.trusted().state; now.Rotation != nil || now.Active != after.Active || now.Sequence != after.Sequence {
		t.Errorf("the step went on with a rotation that was over: %+v", now)
	}
	if a.keeper.problem != nil {
		t.Errorf("it is a problem: %v", a.keeper.problem)
	}
}

// sound checks what has to be so at any time.
func sound(t *testing.T, a *Authority, dir string) {
	t.Helper()
	s := a.trusted()
	if err := s.state.Check(); err != nil {
		t.Fatal(err)
	}
	onDisk, err := x509bundle.Load(td, filepath.Join(dir, bundleFile))
	if err != nil || !onDisk.Equal(s.bundle) {
		t.Errorf("the bundle's file is another: %v", err)
	}
	keys := 0
	for _, c := range s.bundle.X509Authorities() {
		if _, err := a.keeper.loadSigner(t.Context(), c); err != nil {
			t.Error(err)
		}
		keys++
	}
	found, err := filepath.Glob(filepath.Join(dir, "roots", "*.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, root.KeyFile)); err == nil {
		found = append(found, root.KeyFile)
	}
	if len(found) != keys {
		t.Errorf("%d keys for %d roots: %v", len(found), keys, found)
	}
	// For the authority itself, which would renew it, so that it holds no gate.
	id := spiffeid.RequireFromPath(td, "/writ/ca")
	cert, err := a.issue(t.Context(), order{kind: kindSelf, id: id, requester: id.String(), csr: csr.Request{PublicKey: newKey(t).Public()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := covered(&capb.CertificateResponse{Chain: [][]byte{cert.Raw}, Bundle: a.bundleProto(a.trusted())}); err != nil || issuerOf(cert) != s.state.Active {
		t.Errorf("a certificate of %s: %v", issuerOf(cert), err)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, _ := request(t, "")
	return key
}

// What is wrong with the key of the root that signs is an error that names the
// file; with that of the next one the old one goes on signing, and the status says
// what is wrong.
func TestDamagedFurtherKey(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.Listen = "" })
	next := h.rotate(&capb.RotateRootRequest{Manual: true}).GetRotation().GetNewRoot()
	path := filepath.Join(h.config.State, "roots", next+".key")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.rotate(&capb.RotateRootRequest{Manual: true})
	h.eventually("the status names the file", func() bool { return strings.Contains(h.status().GetRotation().GetProblem(), path) })
	h.mint(reviewsID)
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	h.step(capb.RotationStep_ROTATION_STEP_DRAINING)
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"cut":      func() error { return os.WriteFile(path, good[:len(good)/2], 0o600) },
		"readable": func() error { return os.Chmod(path, 0o640) },
		"missing":  func() error { return os.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		err := Run(t.Context(), h.config, newRuntime())
		if err == nil || !strings.Contains(err.Error(), next) && name != "missing" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		_ = os.Remove(path)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.run()
	proctest.Until(t, testBudget, "it signs again", func() bool { return issuerOf(h.mint(reviewsID).Certificates[0]) == next })
}
