package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/cmd/writ/internal/check"
	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	"github.com/writ-mesh/writ/pilot/meshdir"
)

func upCommand() *cobra.Command {
	var o stack.Options
	var checks bool
	var redis string
	c := &cobra.Command{
		Use:   "up DIR",
		Short: "Run a mesh on this machine from a mesh directory",
		Long: `Run a whole mesh on this machine: the five services of Writ, and the programs and
real Envoys that DIR describes. No root, no container, no Kubernetes. Files are
watched: an edit is live within a second. Ctrl-C ends everything.`,
		Example: "  writ up examples/bookinfo",
		Args:    oneDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Dir, o.Redis = args[0], redis
			return up(cmd.Context(), o, checks, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&o.State, "state", "", "keep state in this folder instead of DIR/.writ")
	f.StringVar(&o.ReadyFile, "ready-file", "", "write this file when every sidecar has acknowledged the first revision")
	f.StringVar(&redis, "redis", "", "count quotas in the Redis at this address instead of in process")
	f.DurationVar(&o.CertificateLife, "certificate-life", 0, "life of workload certificates, at least 10s (default 1h)")
	f.DurationVar(&o.ServiceCertificateLife, "service-certificate-life", 0, "life of the services' own certificates, at least 10s (default 1h)")
	f.StringVar(&o.EnvoyLogLevel, "envoy-log-level", "warning", "Envoy's log level")
	f.BoolVar(&checks, "check", false, "run DIR/checks.yaml when ready, then end")
	return c
}

func up(ctx context.Context, o stack.Options, checks bool, stdout, stderr io.Writer) error {
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
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	s, err := stack.Up(ctx, o, log)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return failed(err)
	}
	defer s.Down()
	level.Set(slog.LevelWarn)
	ready, err := s.Ready(ctx)
	if err != nil {
		return failed(err)
	}
	printProblems(ctx, s, stderr)
	if checks {
		return runChecks(ctx, ready, filepath.Join(o.Dir, "checks.yaml"), "table", stdout)
	}
	announce(stdout, o, ready, time.Since(began))
	s.Follow(ctx, meshdir.NewReader(meshdir.Options{Dir: o.Dir}).Watch(ctx))
	fmt.Fprintln(stdout, "\nstopping")
	return nil
}

// printProblems tells of configuration that was left out.
func printProblems(ctx context.Context, s *stack.Stack, w io.Writer) {
	st, err := s.Status(ctx)
	if err != nil {
		return
	}
	for _, p := range st.GetProblems() {
		fmt.Fprintf(w, "%s: %s\n", p.GetSeverity(), problemText(p))
	}
}

func announce(w io.Writer, o stack.Options, r *stack.Ready, took time.Duration) {
	fmt.Fprintf(w, "%s is up: %d workloads, %d gateways, revision %s, in %.1f s\n", o.Dir, len(r.Workloads), len(r.Gateways), r.Revision, took.Seconds())
	checks, err := check.Load(filepath.Join(o.Dir, "checks.yaml"))
	if err != nil {
		checks = new(check.File)
	}
	for _, g := range r.Gateways {
		fmt.Fprintf(w, "  open     %s%s\n", g.URL, firstPath(checks, g.Name))
	}
	fmt.Fprintf(w, "  logs     %s\n  policies %s (edit one and see it work at once)\n\nTo try in another terminal:\n", r.Logs, o.Dir)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range suggestions(o.Dir, r, checks) {
		fmt.Fprintf(tw, "  %s\t# %s\n", s[0], s[1])
	}
	_ = tw.Flush()
	fmt.Fprintln(w, "\nCtrl-C ends it all.")
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

// suggestions gives commands and what they show, spelled so that they can be
// copied.
func suggestions(dir string, r *stack.Ready, f *check.File) [][2]string {
	self := os.Args[0]
	out := [][2]string{{self + " status " + dir, "who runs which revision"}}
	if len(f.Checks) > 0 {
		out = append(out, [2]string{self + " check " + dir, "requests with their expected outcome"})
	}
	out = append(out,
		[2]string{self + " certs ls " + dir, "certificates that are live now"},
		[2]string{self + " validate " + dir, "what is wrong with the files, with line and field"})
	for _, c := range f.Checks {
		if w, err := r.Workload(c.From); c.From != "" && err == nil {
			return append(out, [2]string{"curl -x " + w.Proxy + " " + c.Request.URL, "call as " + c.From})
		}
	}
	return out
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
the mesh that ` + "`writ up DIR`" + ` runs, or one that something else runs and --target
describes, in the form of the ready file of ` + "`writ up`" + `.`,
		Example: "  writ check examples/bookinfo\n  writ check examples/bookinfo --target deploy/compose/target.json",
		Args:    cobra.MaximumNArgs(1),
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
	c.Flags().StringVar(&state, "state", "", "the state folder given to `writ up`")
	c.Flags().StringVar(&file, "file", "", "the checks to run instead of DIR/checks.yaml")
	c.Flags().StringVar(&target, "target", "", "a file that describes the mesh, instead of the one that runs from DIR")
	return c
}

func runningOr(target, dir, state string) (*stack.Ready, error) {
	if target != "" {
		return stack.Target(target)
	}
	return stack.Running(dir, state)
}
