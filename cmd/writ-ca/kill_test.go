package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/stoptest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	thief    = "spiffe://example.org/ns/default/sa/thief"
	innocent = "spiffe://example.org/ns/default/sa/innocent"
	// killBudget is for everything that is waited for.
	killBudget = 30 * time.Second
)

// history is what a client of an authority was told, and so has to be true ever after.
type history struct {
	issued  map[string]string // SPIFFE IDs by serial number
	revoked map[string]bool   // serial numbers and SPIFFE IDs
	// open is whose revocation is under way: nobody was told how it ended.
	open string
	// head is one that the ledger had.
	head ledger.Head
	// root is the key id of the one that signed last.
	root string
}

func (h *history) clone() *history {
	c := *h
	c.issued, c.revoked = maps.Clone(h.issued), maps.Clone(h.revoked)
	return &c
}

func (h *history) serialOf(id string) string {
	for serial, of := range h.issued {
		if of == id {
			return serial
		}
	}
	return ""
}

// operation is what a client wants of an authority. It may be repeated until it
// succeeds.
type operation struct {
	name string
	do   func(c *client, h *history) error
}

// operations are in this order; each finds what those before it have done.
func operations() []operation {
	return []operation{
		{"start", func(*client, *history) error { return nil }},
		{"append", func(c *client, h *history) error { return errors.Join(c.mint(h, thief), c.mint(h, innocent)) }},
		{"revoke a certificate", func(c *client, h *history) error { return c.revoke(h, h.serialOf(innocent), true) }},
		{"revoke an identity", func(c *client, h *history) error { return c.revoke(h, thief, true) }},
		{"rotate", func(c *client, h *history) error { return c.rotate(h, &capb.RotateRootRequest{Force: true}) }},
		{"rotate a compromised root", func(c *client, h *history) error { return c.rotate(h, &capb.RotateRootRequest{Compromised: true}) }},
		{"unrevoke", func(c *client, h *history) error { return c.revoke(h, thief, false) }},
	}
}

// TestKillAtEveryStep kills the authority that is shipped before each system call by
// which it alters anything, from its first start on and in the course of each
// operation, starts it again each time, and finds out whether all is true that it said
// before, and whether it goes on.
func TestKillAtEveryStep(t *testing.T) {
	t.Parallel()
	w := &walk{t: t, program: stoptest.Shipped(t, "writ-ca"), base: t.TempDir()}
	state, h := "", &history{issued: map[string]string{}, revoked: map[string]bool{}}
	for _, op := range operations() {
		// Once without dying, to learn the steps.
		learned := w.live(t, op, state, h, nil)
		if learned.err != nil || len(learned.steps) < 3 {
			t.Fatalf("%s: %v; the steps are %v", op.name, learned.err, learned.steps)
		}
		t.Run(op.name, func(t *testing.T) {
			for i, at := range learned.steps {
				from, known := state, h
				t.Run(fmt.Sprintf("%d %s", i+1, at), func(t *testing.T) {
					t.Parallel()
					w.killed(t, op, from, known, at)
				})
			}
		})
		// It was killed after the operation, and the next one begins with what it left.
		state, h = learned.state, w.restarted(t, op, learned)
	}
	died, missed := w.died.Load(), w.missed.Load()
	t.Logf("killed %d times; %d steps were not met again", died, missed)
	// Which of two threads comes first is different each time, so that the last of
	// equal steps may not be met; that most are not would be another matter.
	if died < 80 || missed > died/10 {
		t.Errorf("killed %d times only, %d steps were not met again", died, missed)
	}
}

// walk is the way through all steps.
type walk struct {
	t             *testing.T
	program, base string
	lives         atomic.Int64
	died, missed  atomic.Int64
}

// life is what became of an authority and its client.
type life struct {
	state   string // the directory that it left
	steps   []stoptest.Stop
	history *history
	err     error // of the operation
}

// killed has an authority die at a step, and looks at what it left.
func (w *walk) killed(t *testing.T, op operation, from string, h *history, at stoptest.Stop) {
	t.Helper()
	l := w.live(t, op, from, h, &at)
	if slices.Contains(l.steps, at) {
		w.died.Add(1)
	} else {
		w.missed.Add(1)
	}
	w.restarted(t, op, l)
}

// live runs an authority with a copy of a state directory, an operation at it, and
// kills it, at a step if it comes to that, else when the operation has ended.
func (w *walk) live(t *testing.T, op operation, from string, h *history, at *stoptest.Stop) life {
	t.Helper()
	l := life{state: w.directory(t, from), history: h.clone()}
	s := &stoptest.Stops{File: ledgerFile, Synced: func(file string) bool { return file == filelog.Name }}
	if from == "" {
		s.CountTo(at) // the operation is the first start
	}
	p := s.Start(t, w.command(l.state)...)
	defer p.Kill()
	c := connect(t, l.state, p)
	if c.answers() {
		if from != "" {
			s.CountTo(at)
		}
		l.err = op.do(c, l.history)
	}
	l.steps = s.Met()
	return l
}

var keyIDPart = regexp.MustCompile(`[0-9a-f]{40}`)

// ledgerFile names a file of a state directory.
func ledgerFile(dir, base string) string {
	if filepath.Base(dir) == "roots" {
		base = "roots/" + base
	}
	return keyIDPart.ReplaceAllString(base, "KEY")
}

// restarted starts an authority again that was killed, looks whether all is true that
// it said before, and repeats what was cut off. It returns what is true then.
func (w *walk) restarted(t *testing.T, op operation, l life) *history {
	t.Helper()
	p := proctest.Start(t, w.command(l.state)[0], w.command(l.state)[1:]...)
	defer p.Kill()
	c := connect(t, l.state, p)
	if !c.answers() {
		t.Fatalf("it does not start again: %s", p.Output)
	}
	h := l.history
	c.holds(t, h)
	if err := op.do(c, h); err != nil {
		t.Fatalf("it does not go on: %v", err)
	}
	if err := c.mint(h, innocent+"-again"); err != nil {
		t.Fatalf("it does not issue: %v", err)
	}
	c.holds(t, h)
	// What it writes just now is there for a moment.
	proctest.Eventually(t, killBudget, func() error {
		left, err := filepath.Glob(filepath.Join(l.state, "*", ".*"))
		more, err2 := filepath.Glob(filepath.Join(l.state, ".*"))
		if err != nil || err2 != nil || len(left)+len(more) > 0 {
			return fmt.Errorf("what was written by half is still there: %v %v", left, more)
		}
		return nil
	})
	return h
}

func (w *walk) command(state string) []string {
	// Nobody lives long enough to collect garbage.
	return []string{
		"/usr/bin/env", "GOGC=off", w.program, "-trust-domain", "example.org", "-state", state, "-admin", "unix://" + adminSocket(state), "-monitoring", "unix://" + filepath.Join(filepath.Dir(state), "m"),
	}
}

func adminSocket(state string) string { return filepath.Join(filepath.Dir(state), "a") }

// directory makes a copy of a state directory; its path is short enough for sockets
// beside it.
func (w *walk) directory(t *testing.T, from string) string {
	t.Helper()
	dir := filepath.Join(w.base, fmt.Sprint(w.lives.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "s")
	if from == "" {
		return to
	}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := filepath.Join(to, strings.TrimPrefix(path, from))
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(name, info.Mode().Perm())
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(name, data, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// client asks an authority over its admin socket.
type client struct {
	ctx   context.Context //nolint:containedctx // that of the test
	csr   []byte
	conn  *grpc.ClientConn
	p     *proctest.Process
	state string
}

func connect(t *testing.T, state string, p *proctest.Process) *client {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+adminSocket(state), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), killBudget)
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
	})
	return &client{ctx: ctx, csr: request(t), conn: conn, p: p, state: state}
}

// answers waits until the authority answers, or has ended.
func (c *client) answers() bool {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	go func() {
		select {
		case <-c.p.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for _, err := os.Stat(adminSocket(c.state)); err != nil; _, err = os.Stat(adminSocket(c.state)) {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	_, err := capb.NewAdminClient(c.conn).GetBundle(ctx, &capb.GetBundleRequest{}, grpc.WaitForReady(true))
	return err == nil
}

// mint gets a certificate, and verifies it as a peer would.
func (c *client) mint(h *history, id string) error {
	if h.serialOf(id) != "" {
		return nil
	}
	resp, err := capb.NewAdminClient(c.conn).Mint(c.ctx, &capb.MintRequest{SpiffeId: id, Csr: c.csr})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(resp.GetChain()[0])
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, der := range resp.GetBundle().GetRoots() {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		pool.AddCert(root)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("the certificate of %s: %w", id, err)
	}
	h.issued[hex.EncodeToString(leaf.SerialNumber.Bytes())] = id
	return nil
}

// revoke revokes, or takes back.
func (c *client) revoke(h *history, what string, on bool) error {
	h.open = what
	revocations := capb.NewRevocationsClient(c.conn)
	var err error
	switch {
	case on && strings.HasPrefix(what, "spiffe:"):
		_, err = revocations.Revoke(c.ctx, &capb.RevokeRequest{Subject: &capb.RevokeRequest_SpiffeId{SpiffeId: what}})
	case on:
		_, err = revocations.Revoke(c.ctx, &capb.RevokeRequest{Subject: &capb.RevokeRequest_Serial{Serial: what}})
	default:
		_, err = revocations.Unrevoke(c.ctx, &capb.UnrevokeRequest{Subject: &capb.UnrevokeRequest_SpiffeId{SpiffeId: what}})
		if status.Code(err) == codes.FailedPrecondition {
			err = nil // it was done before, and nobody heard of it
		}
	}
	if err == nil {
		h.revoked[what], h.open = on, ""
	}
	return err
}

// rotate replaces the root that h knows.
func (c *client) rotate(h *history, how *capb.RotateRootRequest) error {
	client := capb.NewRootsClient(c.conn)
	st, err := client.GetRoots(c.ctx, &capb.GetRootsRequest{})
	if err != nil {
		return err
	}
	if active(st) == h.root && st.GetRotation() == nil {
		if st, err = client.RotateRoot(c.ctx, how); err != nil {
			return err
		}
	}
	stream, err := client.WatchRoots(c.ctx, &capb.WatchRootsRequest{})
	for err == nil && (st.GetRotation() != nil || active(st) == h.root) {
		st, err = stream.Recv()
	}
	if err == nil && (len(st.GetRoots()) != 1 || st.GetLast().GetStep() != capb.RotationStep_ROTATION_STEP_DONE) {
		err = fmt.Errorf("the rotation ended with %v", st)
	}
	if err == nil {
		h.root = active(st)
	}
	return err
}

func active(st *capb.RootsStatus) string {
	for _, r := range st.GetRoots() {
		if r.GetActive() {
			return r.GetKeyId()
		}
	}
	return ""
}

// holds finds out whether what h knows is true of an authority.
func (c *client) holds(t *testing.T, h *history) {
	t.Helper()
	c.ledgerHolds(t, h)
	c.rootsHold(t, h)
	list, err := capb.NewRevocationsClient(c.conn).ListRevocations(c.ctx, &capb.ListRevocationsRequest{})
	if err != nil || list.GetProblem() != "" {
		t.Fatalf("revocations: %v, %s", err, list.GetProblem())
	}
	got := map[string]bool{}
	for _, r := range list.GetRevocations() {
		if r.GetSerial() != "" {
			got[r.GetSerial()] = true
		} else {
			got[r.GetSpiffeId()] = true
		}
	}
	for what, revoked := range h.revoked {
		if got[what] != revoked && what != h.open {
			t.Errorf("revoked %v: %s", got[what], what)
		}
		delete(got, what)
	}
	delete(got, h.open)
	if len(got) > 0 {
		t.Errorf("nobody revoked %v", slices.Collect(maps.Keys(got)))
	}
}

// ledgerHolds audits the whole ledger.
func (c *client) ledgerHolds(t *testing.T, h *history) {
	t.Helper()
	client := capb.NewLedgerClient(c.conn)
	signed, err := client.GetCheckpoint(c.ctx, &capb.GetCheckpointRequest{})
	if err != nil {
		t.Fatal(err)
	}
	cp, err := checkpoint.Open([]byte(signed.GetCheckpoint()), signed.GetVerifier())
	if err != nil {
		t.Fatal(err)
	}
	audit := checkpoint.Audit{Known: []ledger.Head{cp.Head, h.head}}
	stream, err := client.ReadEntries(c.ctx, &capb.ReadEntriesRequest{Documents: true})
	if err != nil {
		t.Fatal(err)
	}
	issued := map[string]string{}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		r := ledger.Record{Index: e.GetIndex(), Leaf: e.GetEntry(), Values: e.GetDocuments()}
		if err := audit.Add(r); err != nil {
			t.Fatal(err)
		}
		entry, err := r.Entry()
		if err != nil {
			t.Fatal(err)
		}
		if entry.Kind == ledger.Issued {
			issued[entry.Serial] = entry.Subject
		}
	}
	if _, err := audit.End(); err != nil {
		t.Fatalf("the ledger is not the one that it was: %v", err)
	}
	h.head = cp.Head
	for serial, id := range h.issued {
		if issued[serial] != id {
			t.Errorf("the certificate %s of %s has no entry", serial, id)
		}
	}
}

// rootsHold finds out whether state, keys and trust bundle agree.
func (c *client) rootsHold(t *testing.T, h *history) {
	t.Helper()
	st, err := capb.NewRootsClient(c.conn).GetRoots(c.ctx, &capb.GetRootsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if h.root == "" {
		h.root = active(st)
	}
	known := slices.ContainsFunc(st.GetRoots(), func(r *capb.Root) bool { return r.GetKeyId() == h.root })
	if !known && st.GetRotation() == nil && st.GetLast().GetOldRoot() != h.root {
		t.Errorf("the root %s is gone: %v", h.root, st)
	}
	// The files follow a change at once, and not before it; a rotation goes on meanwhile.
	proctest.Eventually(t, killBudget, c.filesHold)
}

// filesHold finds out whether the files are those of the state.
func (c *client) filesHold() error {
	st, err := capb.NewRootsClient(c.conn).GetRoots(c.ctx, &capb.GetRootsRequest{})
	if err != nil {
		return err
	}
	var want []byte
	keys := map[string]bool{}
	for _, r := range st.GetRoots() {
		keys[r.GetKeyId()] = true
		want = append(want, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.GetCertificate()})...)
	}
	if got, err := os.ReadFile(filepath.Join(c.state, "bundle.pem")); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("bundle.pem has other roots than %v: %w", st, err)
	}
	further, err := filepath.Glob(filepath.Join(c.state, "roots", "*.key"))
	if err != nil {
		return err
	}
	for _, path := range further {
		if id := strings.TrimSuffix(filepath.Base(path), ".key"); !keys[id] {
			return fmt.Errorf("the key of the root %s, which is none, is still there", id)
		}
	}
	_, err = os.Stat(filepath.Join(c.state, "root.key"))
	if first := err == nil; len(st.GetRoots()) == 1 && first == (len(further) > 0) || !first && len(further) == 0 {
		return fmt.Errorf("keys of %d roots: %v, and the first: %w", len(st.GetRoots()), further, err)
	}
	return nil
}
