package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/authz/bundletest"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/proctest"
)

// polled is a configuration with one bundle that is polled for as long as the
// server likes.
func polled(url, more string) string {
	return fmt.Sprintf(`{"services": {"s": {"url": %q}}, "bundles": {"b": {"service": "s", "resource": "b.tar.gz",
		"polling": {"min_delay_seconds": 0, "max_delay_seconds": 1, "long_polling_timeout_seconds": 20}%s}}}`, url, more)
}

// A bundle over HTTP: it is put in force, held by long polling with its ETag,
// replaced, and stays while what comes after it is broken.
func TestBundleOverHTTP(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	r := run(t, options(polled(s.URL, "")))
	r.fails(t, "b", "Not Found")
	if got := r.ask(t); got != rego.ErrUndefined.Error() {
		t.Errorf("before the first bundle: %q", got)
	}
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(1)))
	r.decides(t, "1 1")
	r.ready(t)
	if got := r.Current().Revisions["b"]; got != "r1" {
		t.Errorf("revision %q", got)
	}
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(2)))
	r.decides(t, "2 2")
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"no archive":  {[]byte("<html>"), "archive read failed"},
		"bad rego":    {bundletest.Tarball(t, map[string]string{"p.rego": "package envoy.authz\nallow if"}), "rego_parse_error"},
		"out of root": {bundletest.Tarball(t, map[string]string{".manifest": `{"roots": ["a"]}`, "data.json": `{"b": 1}`}), "do not permit data"},
		"a delta":     {bundletest.Tarball(t, map[string]string{"patch.json": `{"data": []}`}), "delta bundle is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			s.set("/b.tar.gz", c.content)
			r.fails(t, "b", c.want)
			if got := r.ask(t); got != "2 2" {
				t.Errorf("a broken bundle changed the decision to %q", got)
			}
			if rep := r.report("b"); rep.Revision != "r2" {
				t.Errorf("revision %q is said to be in force", rep.Revision)
			}
			r.ready(t) // who decides by the last good bundle is of use
		})
	}
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(4)))
	r.decides(t, "4 4")
	proctest.Eventually(t, 30*time.Second, func() error { return r.report("b").Err })
	var etags, waits int
	for _, h := range s.seen("/b.tar.gz") {
		if h.Get("If-None-Match") != "" {
			etags++
		}
		if strings.Contains(h.Get("Prefer"), "wait=20") && !strings.Contains(h.Get("Prefer"), "delta") {
			waits++
		}
	}
	if etags == 0 || waits == 0 {
		t.Errorf("%d requests with an ETag, %d that wait", etags, waits)
	}
}

// While revisions come one after the other, each decision is of one of them.
func TestNoDecisionSeesTwoRevisions(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(0)))
	r := run(t, options(polled(s.URL, "")))
	r.decides(t, "0 0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for last := 0; ; {
				select {
				case <-stop:
					return
				default:
				}
				var rule, data int
				if _, err := fmt.Sscanf(r.ask(t), "%d %d", &rule, &data); err != nil || rule != data || rule < last {
					t.Errorf("rule of revision %d with data of %d after %d: %v", rule, data, last, err)
					return
				}
				last = rule
			}
		})
	}
	for i := 1; i <= 8; i++ {
		s.set("/b.tar.gz", bundletest.Tarball(t, policy(i)))
		r.decides(t, fmt.Sprintf("%d %d", i, i))
	}
	close(stop)
	wg.Wait()
}

// With a signing section only a bundle with the right signature gets in.
func TestSignedBundle(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	config := strings.Replace(polled(s.URL, `, "signing": {"keyid": "k"}`), "{", `{"keys": {"k": {"algorithm": "HS256", "key": "the right key"}}, `, 1)
	r := run(t, options(config))
	revision := 1
	good := func() {
		s.set("/b.tar.gz", signed(t, policy(revision), "the right key", "k"))
		r.decides(t, fmt.Sprintf("%d %d", revision, revision))
		revision++
	}
	good()
	for name, content := range map[string][]byte{
		"not signed":  bundletest.Tarball(t, policy(100)),
		"another key": signed(t, policy(100), "another key", "k"),
		"a changed file": bundletest.Tarball(t, func() map[string]string {
			files := contents(t, signed(t, policy(100), "the right key", "k"))
			files["/data.json"] = `{"settings": {"revision": 101}}`
			return files
		}()),
	} {
		before := r.ask(t)
		s.set("/b.tar.gz", content)
		proctest.Eventually(t, 30*time.Second, func() error {
			if err := r.report("b").Err; err == nil {
				return fmt.Errorf("%s: no error yet", name)
			}
			return nil
		})
		if got := r.ask(t); got != before {
			t.Fatalf("%s: decides %q", name, got)
		}
		good()
	}
}

// What to load, and by which rule to decide, may come by discovery.
func TestDiscovery(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(1)))
	discovered := func(resource string) []byte {
		return bundletest.Tarball(t, map[string]string{"discovery.rego": `package discovery
			config := {
				"bundles": {"b": {"service": "s", "resource": "` + resource + `", "polling": {"min_delay_seconds": 0, "max_delay_seconds": 1, "long_polling_timeout_seconds": 20}}},
				"plugins": {"decider": {"path": "envoy/authz/allow"}},
				"labels": {"from": "discovery"},
			}`})
	}
	o := options(fmt.Sprintf(`{"services": {"s": {"url": %q}}, "discovery": {"service": "s", "resource": "d.tar.gz", "decision": "discovery/config",
		"polling": {"min_delay_seconds": 0, "max_delay_seconds": 1, "long_polling_timeout_seconds": 20}}}`, s.URL))
	var section string
	o.Read = func(b []byte) (string, func(), error) {
		return "data.envoy.authz.allow", func() { section = string(b) }, nil
	}
	r := run(t, o)
	if r.query.Load() != nil {
		t.Error("there is a query before anything was discovered")
	}
	s.set("/d.tar.gz", discovered("b.tar.gz"))
	if err := r.Configured(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.decides(t, "1 1")
	r.ready(t)
	if !strings.Contains(section, "envoy/authz/allow") {
		t.Errorf("section %s", section)
	}
	s.set("/c.tar.gz", bundletest.Tarball(t, policy(2)))
	s.set("/d.tar.gz", discovered("c.tar.gz"))
	r.decides(t, "2 2")
	// A broken configuration changes nothing.
	s.set("/d.tar.gz", bundletest.Tarball(t, map[string]string{"discovery.rego": "package discovery\nconfig := {\"bundles\": {\"b\": {\"service\": \"none\"}}}"}))
	s.set("/c.tar.gz", bundletest.Tarball(t, policy(3)))
	r.decides(t, "3 3")
	// What it brought is compiled by us, beside requests, and trimmed.
	if c := r.Current().compiler; c.Graph != nil {
		t.Error("it was compiled by OPA alone")
	}
}

// Where discovery's own bundle comes otherwise than by HTTP, OPA reads bundles by itself.
func TestDiscoversByHTTP(t *testing.T) {
	for text, want := range map[string]bool{
		`{"services": {"s": {"url": "http://h"}}, "discovery": {"service": "s"}}`:                                          true,
		`{"services": [{"name": "s", "url": "http://h", "type": ""}], "discovery": {"persist": false}}`:                    true,
		`{"services": {"s": {"url": "http://h"}}, "discovery": {"persist": true}}`:                                         false,
		`{"services": {"s": {"url": "http://h"}}, "discovery": {"persist": "true"}}`:                                       false,
		`{"services": {"s": {"url": "http://h"}, "r": {"url": "http://r", "type": "OCI"}}, "discovery": {"service": "s"}}`: false,
		`{"services": [{"name": "s", "url": "http://h", "type": "oci"}], "discovery": {}}`:                                 false,
		`{"services": 7, "discovery": {}}`:                                                                                 false,
		`{"services": {"s": {"url": "http://h"}}, "discovery": 7}`:                                                         false,
		`{"services": {"s": {"url": "http://h"}}}`:                                                                         false,
	} {
		boot := map[string]any{}
		if err := json.Unmarshal([]byte(text), &boot); err != nil {
			t.Fatal(err)
		}
		if got := discoversByHTTP(boot); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// A configuration that was discovered and kept, and that is data rather than rules,
// counts after a restart while the server is away. The test has a process of its own: how
// bundles are read is one switch in the process, which other tests turn.
func TestDiscoveryKept(t *testing.T) {
	if os.Getenv("WRIT_TEST_DISCOVERY") == "" {
		t.Parallel()                                                                                  // it mostly waits
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiscoveryKept$", "-test.v") //nolint:gosec // this test
		c.Env = append(os.Environ(), "WRIT_TEST_DISCOVERY=1")
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestDiscoveryKept") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s := newServer(t)
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(1)))
	s.set("/d.tar.gz", bundletest.Tarball(t, map[string]string{"data.json": `{"discovery": {"config": {
		"bundles": {"b": {"service": "s", "resource": "b.tar.gz", "persist": true, "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1}}},
		"plugins": {"decider": {}}}}}`}))
	dir := t.TempDir()
	config := fmt.Sprintf(`{"services": {"s": {"url": %q}}, "persistence_directory": %q,
		"discovery": {"service": "s", "resource": "d.tar.gz", "decision": "discovery/config", "persist": true, "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1}}}`, s.URL, dir)
	t.Run("first", func(t *testing.T) {
		run(t, options(config)).decides(t, "1 1")
		proctest.Eventually(t, 30*time.Second, func() error {
			kept, err := filepath.Glob(dir + "/bundles/*/bundle.tar.gz")
			if err == nil && len(kept) < 2 {
				err = fmt.Errorf("%v are kept, want two bundles", kept)
			}
			return err
		})
	})
	s.CloseClientConnections()
	s.Close()
	run(t, options(config)).decides(t, "1 1")
}

// A bundle that was kept decides after a restart while the server is away.
func TestPersistedBundle(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(1)))
	config := strings.Replace(polled(s.URL, `, "persist": true`), "{", `{"persistence_directory": "`+t.TempDir()+`", `, 1)
	t.Run("first", func(t *testing.T) {
		r := run(t, options(config))
		r.decides(t, "1 1")
		proctest.Eventually(t, 30*time.Second, func() error {
			if r.report("b").Revision == "" {
				return errors.New("not reported yet")
			}
			return nil
		})
	})
	s.CloseClientConnections()
	s.Close()
	run(t, options(config)).decides(t, "1 1")
}

// Bundles as files, and policies beside them.
func TestFiles(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	file := dir + "/b.tar.gz"
	if err := os.WriteFile(file, bundletest.Tarball(t, policy(7)), 0o600); err != nil {
		t.Fatal(err)
	}
	configured := run(t, options(fmt.Sprintf(`{"bundles": {"b": {"resource": "file://%s"}}}`, file)))
	configured.decides(t, "7 7")
	for name, change := range map[string]func(*Options){
		"argument":          func(o *Options) { o.Local = local(t, []string{file}, nil) },
		"argument, bundles": func(o *Options) { o.Local = local(t, nil, []string{file}) },
	} {
		o := options("{}")
		change(&o)
		if got := run(t, o).ask(t); got != "7 7" {
			t.Errorf("%s: %q", name, got)
		}
	}
	delta := dir + "/delta.tar.gz"
	if err := os.WriteFile(delta, bundletest.Tarball(t, map[string]string{"patch.json": `{"data": [{"op": "upsert", "path": "/settings", "value": 8}]}`}), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, options(fmt.Sprintf(`{"bundles": {"b": {"resource": "file://%s"}}}`, delta))).fails(t, "b", "delta bundle is not supported")
}

// Status and decision logs go to the service in OPA's formats; what is masked is
// not in them.
func TestStatusAndDecisionLogs(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	files := policy(1)
	files["mask.rego"] = "package envoy.log\nmask contains \"/input/attributes/request/http/headers/x-card\"\n"
	s.set("/b.tar.gz", bundletest.Tarball(t, files))
	config := strings.Replace(polled(s.URL, ""), "{", `{"labels": {"app": "shop"}, "status": {"service": "s"},
		"decision_logs": {"service": "s", "console": true, "mask_decision": "/envoy/log/mask", "reporting": {"min_delay_seconds": 0, "max_delay_seconds": 1}}, `, 1)
	o := options(config)
	console := new(lockedBuffer)
	o.Console = console
	r := run(t, o)
	r.decides(t, "1 1")
	in, err := rego.NewInput(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
		Http: &authv3.AttributeContext_HttpRequest{Path: "/x?access_token=secret", Headers: map[string]string{"authorization": "secret", "x-card": "secret", "x-user": "ann", ":path": "/x?access_token=secret"}},
	}}}, rego.InputOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []Decision{
		{ID: "first", Path: "envoy/authz/allow", Snapshot: r.Current(), Input: in, Result: true},
		{ID: "second", Path: "envoy/authz/allow", Snapshot: r.Current(), Input: in, Err: rego.ErrUndefined},
	} {
		if err := r.Log(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	var events []map[string]any
	proctest.Eventually(t, 20*time.Second, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		events = nil
		for _, b := range s.posts["/logs"] {
			var list []map[string]any
			if err := json.Unmarshal(b, &list); err != nil {
				return err
			}
			events = append(events, list...)
		}
		if len(events) < 2 {
			return fmt.Errorf("%d events", len(events))
		}
		return nil
	})
	first, _ := json.Marshal(events[0])
	for _, want := range []string{`"decision_id":"first"`, `"path":"envoy/authz/allow"`, `"result":true`, `"revision":"r1"`, `"x-user":"ann"`, `"app":"shop"`, `"erased":["/input/attributes/request/http/headers/x-card"]`, `"authorization":"[redacted]"`, `"path":"/x?access_token=[redacted]`} {
		if !bytes.Contains(first, []byte(want)) {
			t.Errorf("%s is missing in %s", want, first)
		}
	}
	second, _ := json.Marshal(events[1])
	if !bytes.Contains(second, []byte(`"error":{"message":"undefined decision"}`)) {
		t.Errorf("second: %s", second)
	}
	if all := console.String() + string(first); strings.Contains(all, "secret") || !strings.Contains(all, `"msg":"Decision Log"`) {
		t.Errorf("console: %s", all)
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, b := range s.posts["/status"] {
			if bytes.Contains(b, []byte(`"active_revision":"r1"`)) {
				return nil
			}
		}
		return fmt.Errorf("no status with the revision: %s", bytes.Join(s.posts["/status"], []byte("\n")))
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
