package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/stoptest"
)

func TestMain(m *testing.M) {
	stoptest.Become()
	os.Exit(m.Run())
}

// killBudget is for everything that is waited for.
const killBudget = 2 * time.Minute

const (
	// groups of checks are made one after the other, each so many.
	groups, groupSize = 2, 10
)

// TestDecisionsOutliveTheirProcess kills the authz that is shipped before each step by
// which it brings decisions to disk, from there to the sink, and away: a refusal that a
// caller has seen is on disk, what was on disk is in the sink after a restart, whole and
// at least once, and nothing is left behind.
func TestDecisionsOutliveTheirProcess(t *testing.T) {
	t.Parallel()
	w := &logWalk{program: stoptest.Shipped(t, "writ-authz"), base: t.TempDir()}
	steps := w.live(t, nil)
	if len(steps) < 10 {
		t.Fatalf("the steps are %v", steps)
	}
	t.Run("at", func(t *testing.T) {
		for i, at := range steps {
			t.Run(fmt.Sprintf("%d %s", i+1, at), func(t *testing.T) {
				t.Parallel()
				w.live(t, &at)
			})
		}
	})
	t.Logf("%d steps, killed %d times, %d records twice", len(steps), w.died.Load(), w.twice.Load())
	// How records fall into batches hangs on time, so that not each step is met again.
	if w.died.Load() < int64(len(steps)/2) {
		t.Errorf("killed %d times only", w.died.Load())
	}
}

// logWalk is the way through all steps.
type logWalk struct {
	program, base string
	lives         atomic.Int64
	died, twice   atomic.Int64
}

// authzHome is one place where authz runs.
type authzHome struct{ dir, config string }

func (h authzHome) socket() string { return filepath.Join(h.dir, "a") }
func (h authzHome) spool() string  { return filepath.Join(h.dir, "decisions") }
func (h authzHome) sink() string   { return filepath.Join(h.dir, "sink.jsonl") }

func (w *logWalk) home(t *testing.T) authzHome {
	t.Helper()
	return newHome(t, filepath.Join(w.base, fmt.Sprint(w.lives.Add(1))), "flush: 20ms, refusal_wait: 1m")
}

// newHome makes dir one, with more settings of the decision log.
func newHome(t *testing.T, dir, settings string) authzHome {
	t.Helper()
	h := authzHome{dir: dir}
	if err := os.Mkdir(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h.config = filepath.Join(h.dir, "authz.yaml")
	// Nobody gives it a certificate, and no pilot policies: it refuses what it is asked.
	config := fmt.Sprintf(`listen: unix://%[1]s/a
monitoring: unix://%[1]s/m
pilot: 127.0.0.1:1
credential: {ca: "127.0.0.1:1", trust_bundle: %[1]s/root.pem, token_file: %[1]s/token, dir: %[1]s/identity, trust_domain: example.org}
decision: {unknown_policy_wait: 0s}
decision_log: {sink: "file://%[1]s/sink.jsonl", spool: %[1]s/decisions, %[2]s}
`, h.dir, settings)
	for name, text := range map[string]string{"authz.yaml": config, "token": "x", "root.pem": string(pkitest.NewRoot(t, "").PEM())} {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (w *logWalk) command(h authzHome) []string {
	return []string{"/usr/bin/env", "GOGC=off", w.program, "-config", h.config}
}

// spoolFile names the files that decisions go through; their own names have numbers
// that depend on time.
func spoolFile(dir, base string) string {
	switch {
	case base == "sink.jsonl":
		return "the sink"
	case filepath.Base(dir) != "decisions":
		return ""
	case strings.HasPrefix(base, "."):
		return "half a batch"
	case strings.HasPrefix(base, "journal-"):
		return "the journal"
	}
	return "a batch"
}

// live has an authz refuse and be killed, at a moment if it comes to that, else in the
// end; starts it again, and looks what became of the refusals. It gives the moments.
func (w *logWalk) live(t *testing.T, at *stoptest.Stop) []stoptest.Stop {
	t.Helper()
	h := w.home(t)
	s := &stoptest.Stops{File: spoolFile}
	program := w.command(h)
	p := s.Start(t, program...)
	defer p.Kill()
	c := connect(t, h, p)
	c.waits(t)
	s.CountTo(at)
	var known []string // on disk before anybody was told
	for range groups {
		ids := c.refusals()
		known = append(known, ids...)
		if len(ids) < groupSize || !c.kept(h, ids) {
			break // it died
		}
	}
	if at == nil {
		proctest.Eventually(t, killBudget, func() error { return h.delivered(known) })
	}
	p.Kill()
	steps := s.Met()
	if at != nil && slices.Contains(steps, *at) {
		w.died.Add(1)
	}
	left := h.onDisk(t)
	for _, id := range known {
		if !left[id] {
			t.Errorf("the refusal %s was seen and is not on disk", id)
		}
	}
	again := proctest.Start(t, program[0], program[1:]...)
	defer again.Kill()
	c = connect(t, h, again)
	c.waits(t)
	all := c.refusals()
	if len(all) < groupSize {
		t.Fatalf("it does not go on: %s", again.Output)
	}
	for id := range left {
		all = append(all, id)
	}
	proctest.Eventually(t, killBudget, func() error { return h.delivered(all) })
	w.twice.Add(h.readable(t))
	return steps
}

// onDisk are the decisions in the spool and in the sink.
func (h authzHome) onDisk(t *testing.T) map[string]bool {
	t.Helper()
	ids := map[string]bool{}
	entries, err := os.ReadDir(h.spool())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(h.spool(), e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // in the sink meanwhile
		}
		records, err2 := unpacked(e.Name(), data)
		if err != nil || err2 != nil {
			t.Fatalf("a torn batch: %v", errors.Join(err, err2))
		}
		for _, id := range records {
			ids[id] = true
		}
	}
	for id := range h.sinkLines() {
		ids[id] = true
	}
	return ids
}

// unpacked are the decisions of a file in the spool.
func unpacked(name string, batch []byte) (ids []string, err error) {
	if strings.HasSuffix(name, ".jsonl") {
		for id := range lines(batch) {
			ids = append(ids, id)
		}
		return ids, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(batch))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	var records []struct {
		ID string `json:"decision_id"`
	}
	err = json.Unmarshal(text, &records)
	for _, r := range records {
		ids = append(ids, r.ID)
	}
	return ids, err
}

// sinkLines are the lines of the sink.
func (h authzHome) sinkLines() map[string][]string {
	data, _ := os.ReadFile(h.sink())
	return lines(data)
}

// lines are those that are whole, by decision.
func lines(data []byte) map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		var record struct {
			ID string `json:"decision_id"`
		}
		if json.Unmarshal([]byte(line), &record) == nil && strings.HasSuffix(line, "\n") {
			out[record.ID] = append(out[record.ID], line)
		}
	}
	return out
}

// arrived is nil when these are in the sink.
func (h authzHome) arrived(ids []string) error {
	lines := h.sinkLines()
	for _, id := range ids {
		if len(lines[id]) == 0 {
			return fmt.Errorf("%s has not arrived", id)
		}
	}
	return nil
}

// delivered is nil when these are in the sink, and nothing is left in the spool.
func (h authzHome) delivered(ids []string) error {
	if err := h.arrived(ids); err != nil {
		return err
	}
	entries, err := os.ReadDir(h.spool())
	if err != nil || len(entries) > 0 {
		return fmt.Errorf("%d files are left in the spool, %w", len(entries), err)
	}
	return nil
}

// readable holds that each line of the sink is a record, and that what came twice is
// the same; it gives how many did.
func (h authzHome) readable(t *testing.T) (twice int64) {
	t.Helper()
	data, err := os.ReadFile(h.sink())
	if err != nil {
		t.Fatal(err)
	}
	lines := h.sinkLines()
	whole := 0
	for id, same := range lines {
		whole += len(same)
		if len(same) > 1 {
			twice++
		}
		for _, line := range same {
			if line != same[0] {
				t.Errorf("%s came as two: %s%s", id, same[0], line)
			}
		}
	}
	if n := bytes.Count(data, []byte("\n")); n != whole || !bytes.HasSuffix(data, []byte("\n")) {
		t.Errorf("%d lines of %d are records", whole, n)
	}
	return twice
}

// asker asks an authz about requests.
type asker struct {
	ctx    context.Context //nolint:containedctx // that of the test, and of the process
	client authv3.AuthorizationClient
	p      *proctest.Process
}

func connect(t *testing.T, h authzHome, p *proctest.Process) *asker {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+h.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), killBudget)
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
	})
	go func() {
		select {
		case <-p.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return &asker{ctx: ctx, client: authv3.NewAuthorizationClient(conn), p: p}
}

// waits until authz answers.
func (a *asker) waits(t *testing.T) {
	t.Helper()
	proctest.Eventually(t, killBudget, func() error {
		_, err := a.refusal()
		return err
	})
}

func (a *asker) refusal() (id string, err error) {
	resp, err := a.client.Check(a.ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: map[string]string{"writ.policies": "default/none"},
		Request:           &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: "/"}},
	}})
	if err != nil {
		return "", err
	}
	if resp.GetStatus().GetCode() != int32(codes.PermissionDenied) {
		return "", fmt.Errorf("it is allowed: %v", resp)
	}
	return resp.GetDynamicMetadata().GetFields()["decision_id"].GetStringValue(), nil
}

// refusals are the decisions of one group, fewer if the process has ended.
func (a *asker) refusals() []string {
	var ids []string
	for range groupSize {
		id, err := a.refusal()
		if err != nil {
			return ids
		}
		ids = append(ids, id)
	}
	return ids
}

// kept waits until refusals are on disk; false if the process ends before.
func (a *asker) kept(h authzHome, ids []string) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if h.kept(ids) {
			return true
		}
		select {
		case <-a.ctx.Done():
			return h.kept(ids)
		case <-tick.C:
		}
	}
}

func (h authzHome) kept(ids []string) bool {
	have := map[string]bool{}
	entries, _ := os.ReadDir(h.spool())
	for _, e := range entries {
		if data, err := os.ReadFile(filepath.Join(h.spool(), e.Name())); err == nil && !strings.HasPrefix(e.Name(), ".") {
			records, _ := unpacked(e.Name(), data)
			for _, id := range records {
				have[id] = true
			}
		}
	}
	lines := h.sinkLines()
	return !slices.ContainsFunc(ids, func(id string) bool { return !have[id] && len(lines[id]) == 0 })
}
