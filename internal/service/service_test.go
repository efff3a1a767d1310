package service

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// conf is the configuration of the service of these tests.
type conf struct {
	Common `yaml:",inline"`
	Listen string `yaml:"listen"`
	Mesh   string `yaml:"-"`
}

// spec is that service; ran says with what it was run.
func spec(ran *[]conf) Spec[conf] {
	return Spec[conf]{
		Name: "writ-test", About: "a service of the tests", Example: "writ-test -listen 127.0.0.1:3",
		Default: func() conf { return conf{Listen: "127.0.0.1:1"} },
		Common:  func(c *conf) *Common { return &c.Common },
		Flags:   func(c *conf, fs *flag.FlagSet) { fs.StringVar(&c.Listen, "listen", c.Listen, "where") },
		Validate: func(c *conf) error {
			if c.Listen == "" {
				return errors.Join(errors.New("listen: missing"), errors.New("listen: really"))
			}
			return nil
		},
		Run: func(_ context.Context, c conf, _ *Runtime) error { *ran = append(*ran, c); return nil },
	}
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandLine(t *testing.T) {
	good := file(t, "listen: 127.0.0.1:2\nlog: {level: warn, format: json}\n")
	for name, tc := range map[string]struct {
		args        []string
		code        int
		out, errOut string
		listen      string // "" means it does not run
	}{
		"defaults":               {nil, 0, "", "starting", "127.0.0.1:1"},
		"file":                   {[]string{"-config", good}, 0, "", "", "127.0.0.1:2"},
		"flag wins over file":    {[]string{"-listen", "127.0.0.1:3", "-config", good}, 0, "", "", "127.0.0.1:3"},
		"level wins over file":   {[]string{"-config", good, "-log-level", "debug"}, 0, "", `"msg":"starting"`, "127.0.0.1:2"},
		"format wins over file":  {[]string{"-config", good, "-log-level", "info", "-log-format", "text"}, 0, "", "msg=starting", "127.0.0.1:2"},
		"validate":               {[]string{"-config", good, "-validate"}, 0, "configuration is valid", "", ""},
		"validate what is bad":   {[]string{"-listen=", "-validate"}, 1, "", "writ-test: listen: missing\nwrit-test: listen: really\n", ""},
		"run what is bad":        {[]string{"-listen="}, 1, "", "listen: missing", ""},
		"version":                {[]string{"-version"}, 0, "writ-test ", "", ""},
		"version, two dashes":    {[]string{"--version"}, 0, "writ-test ", "", ""},
		"help":                   {[]string{"-help"}, 0, "", "a service of the tests\n\nUsage:\n  writ-test [flags]\n\nExample:\n  writ-test -listen 127.0.0.1:3\n\nFlags:\n  -config file", ""},
		"unknown flag":           {[]string{"-nonsense"}, 2, "", "-nonsense", ""},
		"argument":               {[]string{"nonsense"}, 2, "", `unexpected argument "nonsense"`, ""},
		"missing file":           {[]string{"-config", "/nowhere/x"}, 1, "", "/nowhere/x", ""},
		"unknown key":            {[]string{"-config", file(t, "lisetn: x\n")}, 1, "", `config.yaml:1: unknown key "lisetn"`, ""},
		"unknown key, validated": {[]string{"-config", file(t, "a: 1\n"), "-validate"}, 1, "", "unknown key", ""},
		"level":                  {[]string{"-log-level", "loud"}, 1, "", `log.level "loud"`, ""},
		"format":                 {[]string{"-log-format", "xml"}, 1, "", `log.format "xml"`, ""},
		"monitoring, validated":  {[]string{"-monitoring", "nowhere", "-validate"}, 1, "", "monitoring: ", ""},
		"format, validated":      {[]string{"-log-format", "xml", "-validate"}, 1, "", `log.format "xml"`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var ran []conf
			var out, errOut bytes.Buffer
			code := run(t.Context(), spec(&ran), tc.args, &out, &errOut)
			if code != tc.code || !strings.Contains(out.String(), tc.out) || !strings.Contains(errOut.String(), tc.errOut) {
				t.Errorf("exit code %d, out %q, err %q", code, out.String(), errOut.String())
			}
			switch {
			case tc.listen == "" && len(ran) > 0:
				t.Error("it ran")
			case tc.listen != "" && (len(ran) != 1 || ran[0].Listen != tc.listen):
				t.Errorf("it ran with %+v", ran)
			}
		})
	}
}

// TestWrongFlagIsSaidOnce: one line with the mistake, not two.
func TestWrongFlagIsSaidOnce(t *testing.T) {
	var ran []conf
	var out, errOut bytes.Buffer
	run(t.Context(), spec(&ran), []string{"-nonsense"}, &out, &errOut)
	if n := strings.Count(errOut.String(), "not defined: -nonsense"); n != 1 {
		t.Errorf("said %d times:\n%s", n, errOut.String())
	}
}

func TestPositionalArguments(t *testing.T) {
	var ran []conf
	s := spec(&ran)
	s.Args = func(c *conf, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("want one directory, got %d", len(args))
		}
		c.Mesh = args[0]
		return nil
	}
	var errOut bytes.Buffer
	if code := run(t.Context(), s, []string{"dir"}, io.Discard, &errOut); code != 0 || len(ran) != 1 || ran[0].Mesh != "dir" {
		t.Errorf("exit code %d, %+v, %s", code, ran, errOut.String())
	}
	if code := run(t.Context(), s, nil, io.Discard, &errOut); code != 1 || !strings.Contains(errOut.String(), "want one directory") {
		t.Errorf("exit code %d, %s", code, errOut.String())
	}
}

func TestFailureIsOneLine(t *testing.T) {
	var ran []conf
	s := spec(&ran)
	s.Run = func(context.Context, conf, *Runtime) error { return errors.New("the disk is full") }
	var errOut bytes.Buffer
	code := run(t.Context(), s, []string{"-log-level", "error"}, io.Discard, &errOut)
	if code != 1 || errOut.String() != "writ-test: the disk is full\n" {
		t.Errorf("exit code %d, %q", code, errOut.String())
	}
}

func TestMonitoring(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "monitoring")
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get("http://monitoring" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	expect := func(path string, status int, want string) {
		t.Helper()
		if got, body := get(path); got != status || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want %d %q", path, got, body, status, want)
		}
	}
	var ran []conf
	s := spec(&ran)
	s.Default = func() conf { return conf{Common: Common{Monitoring: "unix://" + socket}, Listen: "x"} }
	s.Run = func(_ context.Context, _ conf, rt *Runtime) error {
		made := prometheus.NewCounter(prometheus.CounterOpts{Name: "writ_test_things_total", Help: "Things."})
		rt.Metrics.MustRegister(made)
		made.Add(3)
		expect("/healthz", 200, "ok")
		expect("/readyz", 200, "ready")
		rt.Health.Register("store")
		rt.Health.Register("pilot")
		expect("/readyz", 503, "not ready: pilot: starting; store: starting")
		expect("/healthz", 200, "ok")
		rt.Health.Set("store", nil)
		rt.Health.Set("pilot", errors.New("away since noon"))
		expect("/readyz", 503, "not ready: pilot: away since noon\n")
		rt.Health.Set("pilot", nil)
		expect("/readyz", 200, "ready")
		expect("/metrics", 200, "writ_test_things_total 3")
		expect("/metrics", 200, "go_goroutines")
		expect("/debug/pprof/", 404, "")
		client.CloseIdleConnections()
		return nil
	}
	var errOut bytes.Buffer
	if code := run(t.Context(), s, nil, io.Discard, &errOut); code != 0 {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestMonitoringAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var ran []conf
	s := spec(&ran)
	s.Default = func() conf { return conf{Common: Common{Monitoring: l.Addr().String()}, Listen: "x"} }
	var errOut bytes.Buffer
	if code := run(t.Context(), s, nil, io.Discard, &errOut); code != 1 || !strings.Contains(errOut.String(), "monitoring: listen on "+l.Addr().String()) || len(ran) > 0 {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
}

// TestSignalEndsCleanly: the end of the context is what a signal is to Main.
func TestSignalEndsCleanly(t *testing.T) {
	var ran []conf
	s := spec(&ran)
	ctx, cancel := context.WithCancel(t.Context())
	s.Run = func(ctx context.Context, _ conf, _ *Runtime) error { cancel(); <-ctx.Done(); return ctx.Err() }
	var errOut bytes.Buffer
	if code := run(ctx, s, nil, io.Discard, &errOut); code != 0 || !strings.Contains(errOut.String(), "stopped") {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
}

func TestRunTasks(t *testing.T) {
	boom := errors.New("boom")
	var mu sync.Mutex
	ended := 0
	waits := func(ctx context.Context) error {
		<-ctx.Done()
		mu.Lock()
		defer mu.Unlock()
		ended++
		return ctx.Err()
	}
	for name, tc := range map[string]struct {
		task func(context.Context) error
		want string
	}{
		"an error ends all": {func(context.Context) error { return boom }, "boom"},
		"a return ends all": {func(context.Context) error { return nil }, ""},
		"a panic ends all":  {func(context.Context) error { panic("ouch") }, "panic: ouch"},
		"a late error counts": {func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("while stopping: %w", boom)
		}, "while stopping"},
	} {
		t.Run(name, func(t *testing.T) {
			ended = 0
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if strings.HasPrefix(name, "a late") {
				cancel()
			}
			err := RunTasks(ctx, waits, tc.task, waits)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if ended != 2 {
				t.Errorf("it did not wait: %d of 2 tasks have ended", ended)
			}
		})
	}
	if err := RunTasks(t.Context()); err != nil {
		t.Errorf("no tasks: %v", err)
	}
}
