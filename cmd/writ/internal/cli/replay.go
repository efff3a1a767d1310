package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/cmd/writ/internal/replay"
	"github.com/writ-mesh/writ/pilot/model"
)

// recordedFlags say where a recording is.
type recordedFlags struct {
	file, state string
}

func (r *recordedFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&r.file, "recording", "", "the recording, a `folder` or a file (default: that of the mesh of writ up in DIR)")
	stateFlag(c, &r.state)
}

func (r *recordedFlags) path(dir string) string {
	switch {
	case r.file != "":
		return r.file
	case r.state != "":
		return filepath.Join(r.state, "authz", "recording")
	}
	return filepath.Join(dir, ".writ", "authz", "recording")
}

// source reads the recording once; left out lines are told of.
func (r *recordedFlags) source(dir string, stderr io.Writer) replay.Source {
	return func(each func(*recording.Seen) error) error {
		path := r.path(dir)
		skipped, err := recording.Read(path, each)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: there is no recording; name one with --recording", path)
		}
		if skipped > 0 {
			fmt.Fprintf(stderr, "writ: %s of the recording cannot be read and %s left out\n", count(skipped, "line"), map[bool]string{true: "is", false: "are"}[skipped == 1])
		}
		return err
	}
}

// replayed makes a mesh to try requests on.
func replayed(ctx context.Context, m *model.Mesh) *replay.Mesh {
	d := deciders(ctx, time.Now())
	return replay.New(m, func(p *model.RegoPolicy, check *authv3.CheckRequest, issuer string, claims map[string]any) (bool, string, error) {
		return d.Rego(p, check, issuer, claims)
	})
}

func replayCommand() *cobra.Command {
	var o output
	var from recordedFlags
	var candidate string
	c := &cobra.Command{
		Use:   "replay --candidate DIR [DIR]",
		Short: "Try other policies on requests that were recorded",
		Long: `Try the policies of a candidate mesh directory on the requests that authz recorded
while the mesh of DIR ran, and print which decisions flip, and for whom. Nothing is
sent anywhere. Of the requests that Envoys allow by themselves only those are recorded
that were asked for, see writ record. What hangs on something that is not in the
recording, such as a redacted header or a body, is unknown and told apart.
Exit code 0: nothing flips; 1: something does; 2: cannot tell.`,
		Example: "  writ replay --candidate next examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			if candidate == "" {
				return errors.New("name the policies to try: --candidate DIR")
			}
			m, err := readMesh(candidate)
			if err != nil {
				return err
			}
			r, err := replay.Candidate(cmd.Context(), replayed(cmd.Context(), m), from.source(meshDir(args), cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printReplay(w, r, "flip") }); err != nil {
				return err
			}
			if len(r.Flips) > 0 {
				return errNo
			}
			if len(r.Unknown) > 0 {
				return codeError{errors.New("of some requests it cannot be told"), exitCannotTell}
			}
			return nil
		},
	}
	o.register(c)
	from.register(c)
	c.Flags().StringVar(&candidate, "candidate", "", "the mesh `directory` whose policies are tried")
	return c
}

// printReplay prints cases, those that are unknown last.
func printReplay(w io.Writer, r *replay.Result, what string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(c replay.Case, why string) {
		fmt.Fprintf(t, "%s\t%s\t%s %s\t%d\t%s\t%s\n", c.From, c.Workload, c.Method, c.Path, c.Count, why, c.By)
	}
	if len(r.Flips)+len(r.Unknown) > 0 {
		fmt.Fprintln(t, "FROM\tTO\tREQUEST\tCOUNT\tDECISION\tBY")
	}
	for _, c := range r.Flips {
		row(c, c.Was+" -> "+c.Now)
	}
	for _, c := range r.Unknown {
		row(c, c.Was+" -> ?")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	flipped, unknown := 0, 0
	for _, c := range r.Flips {
		flipped += c.Count
	}
	for _, c := range r.Unknown {
		unknown += c.Count
	}
	_, err := fmt.Fprintf(w, "%s: %d %s, of %d it cannot be told\n", count(r.Requests, "request"), flipped, what, unknown)
	return err
}
