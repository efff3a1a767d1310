package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	"github.com/writ-mesh/writ/pilot/explain"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/plans"
)

// effectiveLimits is the answer of `writ limits effective`.
type effectiveLimits struct {
	*explain.Limits
	// Counters are how the caller stands, by the name of the counter; only where a mesh
	// runs.
	Counters map[string]quotaCounter `json:"counters,omitempty"`
	// Plans are where the numbers of limits with a plan come from, by the name of the
	// counter.
	Plans map[string]string `json:"plans,omitempty"`
	Notes []string          `json:"notes,omitempty"`
}

func limitsEffectiveCommand() *cobra.Command {
	var o output
	var src meshSource
	var a asked
	c := &cobra.Command{
		Use:   "effective [DIR]",
		Short: "Tell which limits count a request, and why the others do not",
		Long: `Tell which limits of QuotaPolicies count a request: exactly those that its Envoy asks
about, with their numbers, their layer and the file and line of their policy, and of
the others who overrode them or exempts from them. It is answered from the files of a
mesh directory, and nothing has to run; with --live from what pilot has in force, and
ratelimit then tells what is left. --route is another name of --to, and --caller one
of --from.
Exit code 0: told; 2: cannot tell.`,
		Example: "  writ limits effective --route reviews:9080 --caller productpage examples/bookinfo\n" +
			"  writ limits effective --route shop --host shop.example --path /cart --method POST --caller outside examples/bookinfo",
		Args: anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			told, err := tellLimits(cmd.Context(), &src, &a, args)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), told, told.print)
		},
	}
	o.register(c)
	src.register(c)
	a.registerCaller(c)
	a.registerRequest(c)
	c.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name {
		case "route":
			name = "to"
		case "caller":
			name = "from"
		}
		return pflag.NormalizedName(name)
	})
	return c
}

func tellLimits(ctx context.Context, src *meshSource, a *asked, args []string) (*effectiveLimits, error) {
	if a.from == "" {
		return nil, errors.New("name who calls: --caller WORKLOAD, or NAMESPACE/ACCOUNT, or outside")
	}
	q, err := a.question()
	if err != nil {
		return nil, err
	}
	m, err := src.read(ctx, args)
	if err != nil {
		return nil, err
	}
	d := deciders(ctx, time.Now())
	q.Live, d.Revoked = src.running(), src.revoked(ctx, args)
	limits, err := explain.EffectiveLimits(m, q, d)
	if err != nil {
		return nil, err
	}
	told := &effectiveLimits{Limits: limits, Counters: map[string]quotaCounter{}, Plans: map[string]string{}}
	switch {
	case !src.running():
		told.readPlans(meshDir(args))
	case src.socket != "":
		told.Notes = append(told.Notes, "what is left, and numbers by plan, ratelimit knows, which is asked where --live names a mesh of writ up")
	default:
		at := ratelimitAt{state: src.state}
		if err := at.call(ctx, args, told.ask); err != nil {
			told.Notes = append(told.Notes, "ratelimit does not tell what is left: "+err.Error())
		}
	}
	return told, nil
}

// each calls for the limits that count the request.
func (e *effectiveLimits) each(call func(*explain.EffectiveLimit)) {
	for i := range e.Targets {
		for j := range e.Targets[i].Limits {
			if l := &e.Targets[i].Limits[j]; l.Counts {
				call(l)
			}
		}
	}
}

// readPlans takes the numbers of the caller's plan from the files of a mesh directory.
func (e *effectiveLimits) readPlans(dir string) {
	tables, problems := plans.Check(filepath.Join(dir, stack.PlansFolder), plans.DefaultMaxCallers)
	broken := map[string]error{}
	for _, p := range problems {
		broken[strings.TrimSuffix(p.File, plans.Suffix)] = p
	}
	e.each(func(l *explain.EffectiveLimit) {
		if l.Plan == nil {
			return
		}
		if why := cmp.Or(broken[l.Plan.Table], broken["."]); why != nil {
			e.Plans[l.Counter] = "table " + l.Plan.Table + " cannot be read, " + why.Error() + ": the limit's own numbers"
			return
		}
		table := tables[l.Plan.Table]
		if table == nil {
			e.Plans[l.Counter] = "there is no table " + l.Plan.Table + " in " + stack.PlansFolder + "/: the limit's own numbers"
			return
		}
		found := table.Find(l.PlanCaller, l.Plan.Numbers)
		if found.Nothing() {
			e.Plans[l.Counter] = "table " + l.Plan.Table + " does not tell of " + l.PlanCaller + ": the limit's own numbers"
			return
		}
		l.Requests = found.Number.Requests
		if l.Burst > 0 { // of the others a table's burst says nothing
			l.Burst = min(cmp.Or(found.Number.Burst, l.Burst), l.Requests)
		}
		e.Plans[l.Counter] = "table " + l.Plan.Table + ", " + found.String()
	})
}

// ask has ratelimit tell how the caller stands with each limit.
func (e *effectiveLimits) ask(ctx context.Context, client ratelimitpb.LimitsClient) (err error) {
	e.each(func(l *explain.EffectiveLimit) {
		if err != nil {
			return
		}
		var c *ratelimitpb.Counter
		if c, err = client.GetCounter(ctx, &ratelimitpb.GetCounterRequest{Key: l.Counter}); err != nil {
			return
		}
		e.Counters[l.Counter] = quotaCounterOf(c)
		l.Requests, l.Burst = c.GetRequests(), c.GetBurst()
		if c.GetPlan() != "" {
			e.Plans[l.Counter] = c.GetPlan()
		}
	})
	return err
}

func (e *effectiveLimits) print(w io.Writer) error {
	from := e.From
	if from == "" {
		from = "nobody of the mesh"
	}
	for i, t := range e.Targets {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s %s, %s to %s port %d\n", e.Question.Method, e.Question.Path, from, t.Workload, t.Port)
		if t.RefusedBy != "" {
			fmt.Fprintf(w, "  refused by %s before any limit is asked\n", t.RefusedBy)
			continue
		}
		var counted, others []string
		for _, l := range t.Limits {
			if l.Counts {
				counted = append(counted, e.counted(l))
			} else {
				others = append(others, limitName(l)+": "+l.Why)
			}
		}
		if len(counted) == 0 {
			counted = []string{"no limit"}
		}
		printList(w, "COUNTED BY", counted)
		printList(w, "NOT COUNTED BY", others)
		printList(w, "WITHOUT EFFECT", t.Ignored)
	}
	printList(w, "NOT TOLD", e.Notes)
	return nil
}

// limitName names a limit with its layer and place.
func limitName(l explain.EffectiveLimit) string {
	name := fmt.Sprintf("%s limit %d", l.Policy, l.Limit)
	if l.Name != "" {
		name += " " + l.Name
	}
	return name + ", layer " + l.Layer + at(l.At)
}

// counted is a limit with its numbers.
func (e *effectiveLimits) counted(l explain.EffectiveLimit) string {
	numbers := fmt.Sprintf("%d in %s (%s)", l.Requests, l.Every, l.Algorithm)
	switch {
	case l.Algorithm == "concurrency":
		numbers = fmt.Sprintf("%d under way, each for %s at most", l.Requests, l.Every)
	case l.Burst > 0:
		numbers = fmt.Sprintf("%d in %s (%s, burst %d)", l.Requests, l.Every, l.Algorithm, l.Burst)
	}
	per := "for all together"
	if len(l.Per) > 0 {
		per = "per " + strings.Join(l.Per, ", ")
	}
	lines := []string{limitName(l), fmt.Sprintf("  %s %s, counted %s; if ratelimit does not answer: %s", numbers, per, l.Mode, l.Unavailable)}
	if l.Observe {
		lines[1] = fmt.Sprintf("  %s %s, counted %s; refuses nothing (mode: observe)", numbers, per, l.Mode)
	}
	if plan := e.Plans[l.Counter]; plan != "" {
		lines = append(lines, "  by plan: "+plan)
	}
	counter := "  counter " + l.Counter
	if c, known := e.Counters[l.Counter]; known {
		counter += fmt.Sprintf(": %d left", c.Remaining)
	}
	return strings.Join(append(lines, counter), "\n  ")
}
