package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/cmd/writ/internal/check"
	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	"github.com/writ-mesh/writ/pilot/meshdir"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

func upCommand() *cobra.Command {
	var o stack.Options
	var checks bool
	var form output
	c := &cobra.Command{
		Use:   "up DIR",
		Short: "Run a mesh on this machine from a mesh directory",
		Long: `Run a whole mesh on this machine: the five services of Writ, and the programs and
real Envoys that DIR describes. No root, no container, no Kubernetes. Files are
watched: an edit is live within a second, and what came of it is printed.
Ctrl-C ends everything. With -o json every line is an object of its own, and the
one of event "ready" has what the ready file has; with --check there are only the
results, as of writ check.`,
		Example: "  writ up examples/bookinfo",
		Args:    oneDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Dir = args[0]
			t, err := newTeller(form, cmd.OutOrStdout(), checks)
			if err != nil {
				return err
			}
			return up(cmd.Context(), o, checks, t, cmd.ErrOrStderr())
		},
	}
	form.register(c)
	f := c.Flags()
	f.StringVar(&o.State, "state", "", "keep the state in this `directory` (default DIR/.writ)")
	f.StringVar(&o.ReadyFile, "ready-file", "", "write this `file` when every Envoy has its configuration")
	f.StringVar(&o.Redis, "redis", "", "count quotas in the Redis at this `address`, host:port (default: in memory)")
	f.DurationVar(&o.CertificateLife, "certificate-life", 0, "life of workloads' certificates, at least 10s (default 1h)")
	f.DurationVar(&o.ServiceCertificateLife, "service-certificate-life", 0, "life of the services' own certificates, at least 10s (default 1h)")
	f.StringVar(&o.Authority, "authority", "", "a `file` with further configuration of ca, such as federates_with, with absolute paths")
	f.StringVar(&o.RateLimit, "ratelimit", "", "a `file` with further configuration of ratelimit, such as regions; its paths are seen from the state directory")
	f.StringVar(&o.EnvoyLogLevel, "envoy-log-level", "warning", "how much Envoys log: a `level` of envoy --log-level")
	f.BoolVar(&checks, "check", false, "run DIR/checks.yaml when ready, then end")
	return c
}

// teller prints what writ up has to tell.
type teller struct {
	out  io.Writer
	form output
	// checks says that only results of checks are wanted as JSON.
	checks bool
}

func newTeller(form output, out io.Writer, checks bool) (*teller, error) {
	if err := form.known(); err != nil {
		return nil, err
	}
	return &teller{out: out, form: form, checks: checks}, nil
}

// event is what happened, as JSON.
type event struct {
	Event   string       `json:"event"`
	Message string       `json:"message,omitempty"`
	Mesh    *stack.Ready `json:"mesh,omitempty"`
}

func (t *teller) tell(e event) {
	switch {
	case t.form != "json":
		fmt.Fprintln(t.out, e.Message)
	case !t.checks:
		_ = json.NewEncoder(t.out).Encode(e) // like any other line, nobody may be reading
	}
}

func up(ctx context.Context, o stack.Options, checks bool, t *teller, stderr io.Writer) error {
	var err error
	if o.Envoy, err = stack.FindEnvoy(ctx); err != nil {
		return failed(err)
	}
	for name, life := range map[string]time.Duration{"--certificate-life": o.CertificateLife, "--service-certificate-life": o.ServiceCertificateLife} {
		if life != 0 && life < 10*time.Second {
			return failed(fmt.Errorf("%s %s: at least 10s", name, life))
		}
	}
	began := time.Now()
	// While the mesh starts, what fails is the error that Up returns; warnings
	// about attempts on the way would hide it.
	level := new(slog.LevelVar)
	level.Set(slog.LevelError)
	log := slog.New(newTerminal(stderr, level))
	o.Tell = func(line string) { t.tell(event{Event: "starting", Message: line}) }
	o.Problem = func(p meshdir.Problem) { fmt.Fprintln(stderr, problemLine(o.Dir, problemOf(p))) }
	files := stampsOf(o.Dir)
	s, err := stack.Up(ctx, o, log)
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // ended by Ctrl-C in the middle of the start
		}
		return failed(err)
	}
	level.Set(slog.LevelWarn)
	err = run(ctx, s, o, checks, files, began, t, stderr)
	if ctx.Err() != nil && !checks {
		err = nil // Ctrl-C, be it before all was said about the mesh
	}
	s.Down()
	if err == nil && !checks {
		t.tell(event{Event: "ended", Message: "ended"})
	}
	return err
}

// run is what `writ up` does while the mesh runs.
func run(ctx context.Context, s *stack.Stack, o stack.Options, checks bool, files stamps, began time.Time, t *teller, stderr io.Writer) error {
	ready, st := s.Begun()
	for _, p := range st.GetProblems() {
		fmt.Fprintln(stderr, problemLine(o.Dir, p))
	}
	if checks {
		return runChecks(ctx, ready, filepath.Join(o.Dir, "checks.yaml"), t.form, t.out)
	}
	if t.form == "json" {
		t.tell(event{Event: "ready", Mesh: ready})
	} else {
		announce(t.out, o, ready, time.Since(began))
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		e := newEdits(o.Dir, st, files)
		s.WatchStatus(ctx, func(st *pilotpb.GetStatusResponse, rolling bool) {
			for _, line := range e.lines(st, stampsOf(o.Dir), rolling) {
				t.tell(event{Event: "edit", Message: line})
			}
		})
	})
	s.Follow(ctx, meshdir.NewReader(meshdir.Options{Dir: o.Dir}).Watch(ctx))
	if t.form != "json" {
		fmt.Fprintln(t.out) // the terminal has ^C there
	}
	t.tell(event{Event: "stopping", Message: "stopping"})
	wg.Wait()
	return nil
}

// announce tells what to do with the mesh, in few lines.
func announce(w io.Writer, o stack.Options, r *stack.Ready, took time.Duration) {
	fmt.Fprintf(w, "%s is up in %.1f s: %s, %s\n", o.Dir, took.Seconds(), count(len(r.Workloads), "program"), count(len(r.Gateways), "gateway"))
	checks, err := check.Load(filepath.Join(o.Dir, "checks.yaml"))
	if err != nil {
		checks = new(check.File)
	}
	for _, g := range r.Gateways {
		fmt.Fprintf(w, "  open  %s%s\n", g.URL, firstPath(checks, g.Name))
	}
	fmt.Fprintf(w, "  edit  a file in %s: what comes of it is printed here\n", o.Dir)
	state := ""
	if o.State != "" {
		state = " --state " + o.State
	}
	try := "status"
	if len(checks.Checks) > 0 {
		try = "check"
	}
	fmt.Fprintf(w, "  try   %s %s %s%s, in another terminal\n", os.Args[0], try, o.Dir, state)
	fmt.Fprintf(w, "Ctrl-C ends it. Logs are in %s\n", r.Logs)
}

// firstPath is where the first check through a gateway goes, a page worth opening.
func firstPath(f *check.File, gateway string) string {
	for _, c := range f.Checks {
		if c.Gateway == gateway {
			return c.Request.Path
		}
	}
	return ""
}

func runChecks(ctx context.Context, ready *stack.Ready, file string, o output, w io.Writer) error {
	f, err := check.Load(file)
	if err != nil {
		return err
	}
	results := check.Run(ctx, ready, f)
	misses := 0
	for _, r := range results {
		if !r.Pass {
			misses++
		}
	}
	err = o.print(w, results, func(w io.Writer) error {
		_, err := check.Print(w, results)
		return err
	})
	if err == nil && misses > 0 {
		return errNo
	}
	return err
}

func checkCommand() *cobra.Command {
	var o output
	var state, file, target string
	c := &cobra.Command{
		Use:   "check [DIR]",
		Short: "Send the requests of checks.yaml through a running mesh and compare",
		Long: `Send the requests of checks.yaml through a running mesh and compare the answers:
the mesh that writ up DIR runs, or one that something else runs and --target
describes, in the form of the ready file of writ up.
Exit code 0: every answer is as expected; 1: not; 2: cannot tell.`,
		Example: "  writ check examples/bookinfo\n  writ check examples/bookinfo --target deploy/compose/target.json",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := meshDir(args)
			ready, err := runningOr(target, dir, state)
			if err != nil {
				return err
			}
			if file == "" {
				file = filepath.Join(dir, "checks.yaml")
			}
			return runChecks(cmd.Context(), ready, file, o, cmd.OutOrStdout())
		},
	}
	o.register(c)
	stateFlag(c, &state)
	c.Flags().StringVar(&file, "file", "", "the checks to run: a `file` instead of DIR/checks.yaml")
	c.Flags().StringVar(&target, "target", "", "a `file` that describes the mesh, instead of the one that runs from DIR")
	return c
}

func runningOr(target, dir, state string) (*stack.Ready, error) {
	if target != "" {
		return stack.Target(target)
	}
	return stack.Running(dir, state)
}
