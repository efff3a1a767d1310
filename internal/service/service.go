// Package service is the one way in which a process of Writ starts, is watched
// and stops: flags, a strict configuration file, logs, the monitoring port with
// /healthz, /readyz and /metrics, signals and draining. A main calls Main and
// nothing else.
package service

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/version"
)

// Common is the part that every service's configuration file has.
type Common struct {
	// Monitoring is where /healthz, /readyz and /metrics are served: host:port,
	// unix:///path, or empty for nowhere.
	Monitoring string  `yaml:"monitoring"`
	Log        logging `yaml:"log"`
}

// logging says what is logged and how. Logs go to standard error.
type logging struct {
	// Level is debug, info, warn or error; empty means info.
	Level string `yaml:"level"`
	// Format is text or json; empty means text.
	Format string `yaml:"format"`
}

// Runtime is what Main hands to a service.
type Runtime struct {
	Log     *slog.Logger
	Metrics *prometheus.Registry
	Health  *Health
}

// Spec describes a service to Main. C is its configuration, as the file has it.
type Spec[C any] struct {
	// Name is that of the binary, for example writ-ca.
	Name string
	// About is one line for -help, Example a command line.
	About, Example string
	// Default returns a configuration with the defaults filled in.
	Default func() C
	// Common returns the common part of a configuration.
	Common func(*C) *Common
	// Flags adds flags that are bound to fields of c and win over the file. It
	// is called twice, so it must do nothing else. May be nil.
	Flags func(c *C, fs *flag.FlagSet)
	// Args takes the positional arguments; nil means there are none.
	Args func(c *C, args []string) error
	// Validate checks the configuration without the common part, cross-field
	// rules included. It is run by -validate and before every start.
	Validate func(*C) error
	// Run runs until ctx ends, drains and returns. A nil return is a clean stop.
	Run func(ctx context.Context, c C, rt *Runtime) error
}

// Main runs a service and exits the process: 0 after a clean stop, 1 if it could
// not start or failed, 2 for wrong flags.
func Main[C any](s Spec[C]) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, s, os.Args[1:], os.Stdout, os.Stderr))
}

func run[C any](ctx context.Context, s Spec[C], args []string, stdout, stderr io.Writer) int {
	c, opts, err := parse(s, args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case opts.version:
		fmt.Fprintf(stdout, "%s %s\n", s.Name, version.String())
		return 0
	}
	var log *slog.Logger
	if err == nil {
		var common error
		log, common = s.Common(&c).open(stderr)
		err = errors.Join(common, s.Validate(&c))
	}
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(stderr, "%s: %s\n", s.Name, line)
		}
		if opts.usage {
			return 2
		}
		return 1
	}
	if opts.validate {
		fmt.Fprintf(stdout, "%s: configuration is valid\n", s.Name)
		return 0
	}
	if err := serve(ctx, s, c, log.With(slog.String("service", s.Name))); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", s.Name, err)
		return 1
	}
	return 0
}

type options struct {
	file                     string
	validate, version, usage bool
}

// parse reads flags, then the file, then the flags again: the file needs to know
// its name, and flags win over it.
func parse[C any](s Spec[C], args []string, stderr io.Writer) (C, options, error) {
	c, opts := s.Default(), options{}
	fs := flagSet(s, &c, &opts)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(stderr)
			usage := s.Name + " [flags]"
			if s.Args != nil {
				usage += " [arguments]"
			}
			fmt.Fprintf(stderr, "%s: %s\n\nUsage:\n  %s\n\n", s.Name, s.About, usage)
			if s.Example != "" {
				fmt.Fprintf(stderr, "Example:\n  %s\n\n", s.Example)
			}
			fmt.Fprintln(stderr, "Flags:")
			fs.PrintDefaults()
			return c, opts, err
		}
		opts.usage = true
		return c, opts, fmt.Errorf("%w; -help lists the flags", err)
	}
	if opts.version {
		return c, opts, nil
	}
	if opts.file != "" {
		c = s.Default()
		if err := config.Load(opts.file, &c); err != nil {
			return c, opts, err
		}
		again := flagSet(s, &c, &opts)
		if err := again.Parse(args); err != nil {
			return c, opts, err
		}
	}
	if s.Args != nil {
		return c, opts, s.Args(&c, fs.Args())
	}
	if fs.NArg() > 0 {
		opts.usage = true
		return c, opts, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return c, opts, nil
}

// flagSet is silent: what is wrong is said once, by run.
func flagSet[C any](s Spec[C], c *C, o *options) *flag.FlagSet {
	fs := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	fs.StringVar(&o.file, "config", "", "the configuration `file` (YAML)")
	fs.BoolVar(&o.validate, "validate", false, "check the configuration and exit")
	fs.BoolVar(&o.version, "version", false, "print the version and exit")
	common := s.Common(c)
	fs.StringVar(&common.Monitoring, "monitoring", common.Monitoring, "serve /healthz, /readyz and /metrics on this `address`")
	fs.StringVar(&common.Log.Level, "log-level", common.Log.Level, "how much is logged: a `level`, which is debug, info, warn or error")
	fs.StringVar(&common.Log.Format, "log-format", common.Log.Format, "the `format` of logs: text or json")
	if s.Flags != nil {
		s.Flags(c, fs)
	}
	return fs
}

// open checks the common part and makes the logger.
func (c *Common) open(stderr io.Writer) (*slog.Logger, error) {
	log, err := c.Log.logger(stderr)
	if c.Monitoring != "" {
		if lerr := listen.Valid(c.Monitoring); lerr != nil {
			err = errors.Join(err, fmt.Errorf("monitoring: %w", lerr))
		}
	}
	return log, err
}

func (l logging) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if l.Level != "" {
		if err := level.UnmarshalText([]byte(l.Level)); err != nil {
			return nil, fmt.Errorf("log.level %q: want debug, info, warn or error", l.Level)
		}
	}
	opts := &slog.HandlerOptions{Level: level}
	switch l.Format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log.format %q: want text or json", l.Format)
}

func serve[C any](ctx context.Context, s Spec[C], c C, log *slog.Logger) error {
	rt := &Runtime{Log: log, Metrics: prometheus.NewRegistry(), Health: new(Health)}
	rt.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	tasks := []func(context.Context) error{func(ctx context.Context) error { return s.Run(ctx, c, rt) }}
	if addr := s.Common(&c).Monitoring; addr != "" {
		l, err := listen.Listen(addr)
		if err != nil {
			return fmt.Errorf("monitoring: %w", err)
		}
		tasks = append(tasks, func(ctx context.Context) error { return serveHTTP(ctx, rt.monitoring(), l) })
	}
	log.InfoContext(ctx, "starting", slog.String("version", version.String()))
	err := RunTasks(ctx, tasks...)
	if err == nil {
		log.InfoContext(ctx, "stopped")
	}
	return err
}

func (rt *Runtime) monitoring() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", rt.Health.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(rt.Metrics, promhttp.HandlerOpts{Registry: rt.Metrics}))
	return mux
}

func serveHTTP(ctx context.Context, h http.Handler, l net.Listener) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("monitoring: %w", err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := srv.Shutdown(bound)
	<-done
	return err
}
