package authz

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/service"
)

// LogConfig says where the decision log goes, and what is kept while that is away.
type LogConfig struct {
	// Sink is "log" (the service's own log), "stdout" (a JSON object a line),
	// file:///path (the same, in a file), or https://host/path, to which gzip'd JSON
	// arrays are posted. http:// is for this machine.
	Sink string `yaml:"sink"`
	// TokenFile has a bearer token for the sink, CAFile PEM roots for it.
	TokenFile string `yaml:"token_file"`
	CAFile    string `yaml:"ca_file"`
	// Spool is a folder for what the sink has not taken; "decisions" in State if it
	// is empty. Without State it is in memory, at most memorySpool.
	Spool string `yaml:"spool"`
	// SpoolBytes bounds it. A refusal takes some 73 bytes, compressed (TestTenMinutes of
	// package decisionlog), so that the default keeps 24 minutes of 5,000 a second.
	SpoolBytes int `yaml:"spool_bytes"`
	// Flush is how long a record is gathered with others: one that allowed is in memory
	// only, a refusal not synced.
	Flush config.Duration `yaml:"flush"`
	// RefusalWait is how long the answer of a refusal waits at most until its record is
	// written, so that it outlives this process.
	RefusalWait config.Duration `yaml:"refusal_wait"`
	// AllowPercent of the decisions that allowed are logged.
	AllowPercent int `yaml:"allow_percent"`
	// RedactHeaders, RedactQuery and RedactClaims are names whose values are never
	// written down, beside those that are known to hold secrets.
	RedactHeaders []string `yaml:"redact_headers"`
	RedactQuery   []string `yaml:"redact_query"`
	RedactClaims  []string `yaml:"redact_claims"`
}

// The sinks that are no URL.
const (
	sinkLog    = "log"
	sinkStdout = "stdout"
)

// memorySpool bounds a spool without a folder, in bytes.
const memorySpool = 16 << 20

func defaultLogConfig() LogConfig {
	return LogConfig{Sink: sinkLog, SpoolBytes: 512 << 20, Flush: config.Duration(time.Second), RefusalWait: config.Duration(5 * time.Millisecond), AllowPercent: 100}
}

func (l *LogConfig) validate() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("decision_log."+format, args...)) }
	if _, err := l.url(); err != nil {
		fail("sink: %w", err)
	}
	if l.SpoolBytes < 1<<20 || l.SpoolBytes > 1<<40 {
		fail("spool_bytes %d: want 1048576 to 1099511627776", l.SpoolBytes)
	}
	if l.Flush.D() < 10*time.Millisecond || l.Flush.D() > time.Minute {
		fail("flush %s: want 10ms to 1m", l.Flush)
	}
	if l.RefusalWait.D() < 0 || l.RefusalWait.D() > time.Minute {
		fail("refusal_wait %s: want 0 to 1m", l.RefusalWait)
	}
	if l.AllowPercent < 0 || l.AllowPercent > 100 {
		fail("allow_percent %d: want 0 to 100", l.AllowPercent)
	}
	return errs
}

// url is that of the sink; nil for one that has none.
func (l *LogConfig) url() (*url.URL, error) {
	if l.Sink == sinkLog || l.Sink == sinkStdout {
		return nil, nil
	}
	u, err := url.Parse(l.Sink)
	if err != nil || u.User != nil {
		return nil, fmt.Errorf("%q is no URL without user and password", l.Sink)
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return nil, fmt.Errorf("%q: want file:///path", l.Sink)
		}
		return u, nil
	case "https":
		if u.Host != "" {
			return u, nil
		}
	case "http":
		// The records, and the token, would be for everybody on the way.
		if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() || u.Hostname() == "localhost" {
			return u, nil
		}
		return nil, fmt.Errorf("%q: http is for this machine only: use https", l.Sink)
	}
	return nil, fmt.Errorf("%q: want log, stdout, file:///path or https://host/path", l.Sink)
}

func (l *LogConfig) sink() (decisionlog.Sink, error) {
	u, err := l.url()
	switch {
	case err != nil:
		return nil, err
	case u == nil:
		return decisionlog.Stream{W: os.Stdout}, nil
	case u.Scheme == "file":
		return decisionlog.File{Path: u.Path}, nil
	}
	return decisionlog.NewHTTP(decisionlog.HTTPOptions{URL: l.Sink, TokenFile: l.TokenFile, CAFile: l.CAFile})
}

// open makes the log; state is the service's folder, may be empty.
func (l *LogConfig) open(state string, rt *service.Runtime) (*decisionlog.Log, error) {
	o := decisionlog.Options{
		Spool: l.Spool, SpoolBytes: int64(l.SpoolBytes), Flush: l.Flush.D(), RefusalWait: l.RefusalWait.D(), AllowPercent: float64(l.AllowPercent),
		Metrics: rt.Metrics, Log: rt.Log,
	}
	if l.Sink == sinkLog {
		o.Each, o.Spool, o.SpoolBytes = toLog(rt.Log), "", memorySpool
		return decisionlog.Open(o)
	}
	if o.Spool == "" && state != "" {
		o.Spool = filepath.Join(state, "decisions")
	}
	if o.Spool == "" {
		o.SpoolBytes = min(o.SpoolBytes, memorySpool)
	}
	var err error
	if o.Sink, err = l.sink(); err != nil {
		return nil, fmt.Errorf("decision_log: %w", err)
	}
	return decisionlog.Open(o)
}

func (l *LogConfig) redactor() *decisionlog.Redactor {
	return decisionlog.NewRedactor(l.RedactHeaders, l.RedactQuery, l.RedactClaims)
}

// RecordConfig says what is recorded of requests, for `writ replay`.
type RecordConfig struct {
	// Folder is "recording" in State if it is empty; without State nothing is recorded.
	Folder string `yaml:"folder"`
	// MaxBytes bounds it; 0 records nothing.
	MaxBytes int `yaml:"max_bytes"`
	// PerSecond of the requests that were allowed are recorded; of those that were
	// refused, or would have been, up to a thousand.
	PerSecond int `yaml:"per_second"`
}

func (r *RecordConfig) validate() (errs []error) {
	if r.MaxBytes != 0 && r.MaxBytes < 1<<20 || r.MaxBytes > 1<<40 {
		errs = append(errs, fmt.Errorf("recording.max_bytes %d: want 0, or 1048576 to 1099511627776", r.MaxBytes))
	}
	if r.PerSecond < 0 || r.PerSecond > 100000 {
		errs = append(errs, fmt.Errorf("recording.per_second %d: want 0 to 100000", r.PerSecond))
	}
	return errs
}

// open makes the recorder; nil if nothing is to be recorded.
func (r *RecordConfig) open(state string, rt *service.Runtime) (*recording.Recorder, error) {
	folder := r.Folder
	if folder == "" && state != "" {
		folder = filepath.Join(state, "recording")
	}
	if folder == "" || r.MaxBytes == 0 {
		return nil, nil
	}
	return recording.Open(recording.Options{Folder: folder, MaxBytes: int64(r.MaxBytes), PerSecond: r.PerSecond, Metrics: rt.Metrics, Log: rt.Log})
}

// running runs a log and a recorder, which may be nil, beside what fills them, and
// stops them after that, so that the last decisions are in them.
func running(ctx context.Context, l *decisionlog.Log, r *recording.Recorder, fills func(context.Context) error) error {
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	tasks := []func(context.Context) error{l.Run}
	if r != nil {
		tasks = append(tasks, r.Run)
	}
	done := make(chan error, 1)
	go func() { done <- service.RunTasks(own, tasks...) }()
	err := fills(ctx)
	stop()
	if logErr := <-done; err == nil {
		err = logErr
	}
	return err
}
