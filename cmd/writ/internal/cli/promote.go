package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/cmd/writ/internal/replay"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

// promotion is the answer of `writ promote -o json`.
type promotion struct {
	Policy   string `json:"policy"`
	File     string `json:"file"`
	Promoted bool   `json:"promoted"`
	*replay.Result
}

func promoteCommand() *cobra.Command {
	var o output
	var from recordedFlags
	var yes bool
	most := -1
	c := &cobra.Command{
		Use:   "promote POLICY [DIR]",
		Short: "Let a policy enforce what it only observed",
		Long: `Print which of the recorded requests a policy would refuse that only observes
(RegoPolicy, QuotaPolicy and AccessList with mode: observe, AuthorizationPolicy with
the annotation istio.io/dry-run), and with --yes, or if they are no more kinds of requests
than --max says, change its file: one value, and nothing else, comments included.
POLICY is [KIND/]NAMESPACE/NAME. What a QuotaPolicy would refuse hangs on when
requests come and is not predicted: see writ_authz_would_refuse_total.
Exit code 0: it enforces now; 1: it does not, because nobody agreed; 2: cannot tell.`,
		Example: "  writ promote default/office-hours examples/bookinfo\n  writ promote AuthorizationPolicy/default/deny-delete --max 0",
		Args:    arguments(1, 2, "a policy and the mesh directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := meshDir(args[1:])
			before, err := readMesh(dir)
			if err != nil {
				return err
			}
			m, err := readMesh(dir)
			if err != nil {
				return err
			}
			ref, notes, err := enforced(m, args[0])
			if err != nil {
				return err
			}
			p := &promotion{Policy: ref.ID(), File: ref.File}
			p.Result = &replay.Result{Flips: []replay.Case{}, Unknown: []replay.Case{}}
			if ref.Kind != "QuotaPolicy" {
				if p.Result, err = replay.Promotion(cmd.Context(), replayed(cmd.Context(), before), replayed(cmd.Context(), m), ref, from.source(dir, cmd.ErrOrStderr())); err != nil {
					return err
				}
			}
			for _, n := range notes {
				fmt.Fprintln(cmd.ErrOrStderr(), "writ: "+n)
			}
			agreed := yes || most >= 0 && len(p.Flips)+len(p.Unknown) <= most && len(notes) == 0
			if agreed {
				if err := promote(dir, ref); err != nil {
					return err
				}
				p.Promoted = true
			}
			if err := o.print(cmd.OutOrStdout(), p, func(w io.Writer) error { return printPromotion(w, dir, p) }); err != nil {
				return err
			}
			if !agreed {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	from.register(c)
	c.Flags().BoolVar(&yes, "yes", false, "change the file, whatever would be refused")
	c.Flags().IntVar(&most, "max", -1, "change it if at most this `number` of kinds of requests would be refused or cannot be told")
	return c
}

// enforced makes the policy of that name enforce in m, and says what the recording
// cannot tell about it.
func enforced(m *model.Mesh, name string) (model.Ref, []string, error) {
	var found []model.Ref
	var apply []func() []string
	add := func(ref model.Ref, observes bool, f func() []string) {
		full := ref.Namespace + "/" + ref.Name
		if observes && (name == full || name == ref.Kind+"/"+full) {
			found, apply = append(found, ref), append(apply, f)
		}
	}
	for _, p := range m.AuthorizationPolicies {
		add(p.Ref, model.DryRun(p), func() []string {
			notes := otherDryRuns(m, p)
			delete(p.Annotations, model.DryRunAnnotation)
			return notes
		})
	}
	for _, p := range m.RegoPolicies {
		add(p.Ref, p.Observe, func() []string { p.Observe = false; return nil })
	}
	for _, l := range m.AccessLists {
		add(l.Ref, l.Observe, func() []string {
			l.Observe = false
			return otherwise(l)
		})
	}
	for _, p := range m.QuotaPolicies {
		add(p.Ref, p.Observe, func() []string {
			p.Observe = false
			return []string{"what " + p.ID() + " would refuse hangs on when requests come: it is not predicted"}
		})
	}
	switch len(found) {
	case 0:
		return model.Ref{}, nil, fmt.Errorf("no policy %s that only observes: write [KIND/]NAMESPACE/NAME of one", name)
	case 1:
		return found[0], apply[0](), nil
	}
	return model.Ref{}, nil, fmt.Errorf("%s and %s have that name: write the kind before it", found[0].ID(), found[1].ID())
}

// otherwise tells of a list whose entries come from elsewhere that what it refuses is
// not all in the recording.
func otherwise(l *model.AccessList) []string {
	if l.From == nil || l.From.URL == "" {
		return nil
	}
	return []string{"the entries of " + l.ID() + " come from elsewhere: this is what it would have refused by those of the time"}
}

// otherDryRuns tells of dry runs of ALLOW beside p: a request that one of them lets pass
// is not reported, and may be one that p alone does not.
func otherDryRuns(m *model.Mesh, p *model.AuthorizationPolicy) []string {
	if p.Spec.GetAction().String() != "ALLOW" {
		return nil
	}
	for _, other := range m.AuthorizationPolicies {
		if other != p && model.DryRun(other) && other.Spec.GetAction() == p.Spec.GetAction() && (other.Namespace == p.Namespace || other.Namespace == m.RootNamespace || p.Namespace == m.RootNamespace) {
			return []string{"requests that " + other.ID() + ", another dry run of ALLOW, lets pass are not recorded: " + p.ID() + " may refuse more than this"}
		}
	}
	return nil
}

// promote edits the file. The directory has to be valid afterwards, or it is as before.
func promote(dir string, ref model.Ref) error {
	path := filepath.Join(dir, filepath.FromSlash(ref.File))
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: change it by hand", path)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	after, err := replay.Enforce(before, ref)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path, after, info.Mode().Perm()); err != nil {
		return err
	}
	_, problems := meshdir.Validate(meshdir.Options{Dir: dir, CompileRego: rego.Check})
	if bad := meshdir.Errors(problems); len(bad) > 0 {
		return errors.Join(fmt.Errorf("%s would not be valid, and is as it was: %s", dir, bad[0]), atomicfile.Write(path, before, info.Mode().Perm()))
	}
	return nil
}

func printPromotion(w io.Writer, dir string, p *promotion) error {
	if err := printReplay(w, p.Result, "would be refused"); err != nil {
		return err
	}
	line := fmt.Sprintf("%s enforces now (%s)", p.Policy, filepath.Join(dir, p.File))
	if !p.Promoted {
		line = strings.Join([]string{p.Policy, "still observes: say --yes to let it enforce"}, " ")
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
