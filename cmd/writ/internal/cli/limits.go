package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// counterKey explains what counters are called.
const counterKey = `A counter's KEY names the limit and then the caller, as writ limits top prints it: NAMESPACE/POLICY/INDEX?DIMENSION=VALUE&... for a
limit of a QuotaPolicy, DOMAIN?KEY=VALUE&... for one of a descriptor file. Quote it for the shell.`

// quotaCounter is how a caller stands with a limit.
type quotaCounter struct {
	Key        string `json:"key"`
	Limit      string `json:"limit"`
	Requests   uint32 `json:"requests"`
	Every      string `json:"every"`
	Burst      uint32 `json:"burst,omitempty"`
	Remaining  uint32 `json:"remaining"`
	ResetAfter string `json:"resetAfter,omitempty"`
	Counted    string `json:"counted"`
	Plan       string `json:"plan,omitempty"`
	Over       bool   `json:"over"`
	// Regions is where a change was made, if there are several regions.
	Regions []regionPart `json:"regions,omitempty"`
}

func quotaCounterOf(c *ratelimitpb.Counter) quotaCounter {
	row := quotaCounter{
		Key: c.GetKey(), Limit: c.GetLimit(), Requests: c.GetRequests(), Every: c.GetEvery().AsDuration().String(), Burst: c.GetBurst(),
		Remaining: c.GetRemaining(), Over: c.GetOver(), Counted: c.GetCounted(), Plan: c.GetPlan(),
	}
	if after := c.GetResetAfter(); after != nil {
		row.ResetAfter = after.AsDuration().Round(time.Millisecond).String()
	}
	row.Regions = regionPartsOf(c)
	return row
}

func (c quotaCounter) print(w io.Writer) error {
	state := "the next request passes"
	if c.Over {
		state = "the next request is refused"
	}
	counted := ""
	if c.Counted != "" {
		counted = "\n  counted " + c.Counted
	}
	if c.Plan != "" {
		counted += "\n  by " + c.Plan
	}
	numbers := fmt.Sprintf("%d in %s", c.Requests, c.Every)
	if c.Burst > 0 {
		numbers += fmt.Sprintf(", burst %d,", c.Burst)
	}
	_, err := fmt.Fprintf(w, "%s: %d of %s are left, %s (%s)%s\n%s", c.Key, c.Remaining, numbers, state, c.Limit, counted, regionLines(c.Regions))
	return err
}

func limitsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "limits",
		Short:   "See and change how callers stand with their quotas",
		Long:    "See and change how callers stand with their quotas. Only the user that runs ratelimit and root may do this; each change is in ratelimit's audit.\n" + counterKey,
		Example: "  writ limits top examples/bookinfo\n  writ limits reset 'default/reviews/0?source.principal=cluster.local/ns/default/sa/a' --reason 'ticket 7'",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return fmt.Errorf("unknown command %q of writ limits: it has get, top, effective, reset, grant, refund and changes", args[0])
		},
	}
	c.AddCommand(limitsGetCommand(), limitsTopCommand(), limitsChangeCommand(limitChange{
		name: "reset", short: "Forget what a caller used", hits: false,
		call: func(ctx context.Context, l ratelimitpb.LimitsClient, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
			return l.ResetCounter(ctx, r)
		},
	}), limitsChangeCommand(limitChange{
		name: "grant", short: "Let a caller pass some more, at most as many as it used", hits: true,
		call: func(ctx context.Context, l ratelimitpb.LimitsClient, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
			return l.Grant(ctx, r)
		},
	}), limitsChangeCommand(limitChange{
		name: "refund", short: "Give back what a caller used and should not have", hits: true,
		call: func(ctx context.Context, l ratelimitpb.LimitsClient, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
			return l.Refund(ctx, r)
		},
	}), limitsChangesCommand(), limitsEffectiveCommand())
	return c
}

// ratelimitAt is the ratelimit that is meant.
type ratelimitAt struct{ state, socket string }

func (r *ratelimitAt) register(c *cobra.Command) {
	stateFlag(c, &r.state)
	c.Flags().StringVar(&r.socket, "admin", "", "ratelimit's admin `socket`, unix:///path, instead of a mesh of writ up")
}

func (r *ratelimitAt) call(ctx context.Context, dir []string, call func(context.Context, ratelimitpb.LimitsClient) error) error {
	conn, err := adminSocket(dir, r.state, r.socket, "ratelimit")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return call(ctx, ratelimitpb.NewLimitsClient(conn))
}

// show asks for a counter and prints it.
func (r *ratelimitAt) show(cmd *cobra.Command, o *output, dir []string, ask func(context.Context, ratelimitpb.LimitsClient) (*ratelimitpb.Counter, error)) error {
	var got *ratelimitpb.Counter
	err := r.call(cmd.Context(), dir, func(ctx context.Context, l ratelimitpb.LimitsClient) (err error) {
		got, err = ask(ctx, l)
		return err
	})
	if err != nil {
		return err
	}
	row := quotaCounterOf(got)
	return o.print(cmd.OutOrStdout(), row, row.print)
}

func limitsGetCommand() *cobra.Command {
	var o output
	var at ratelimitAt
	c := &cobra.Command{
		Use:     "get KEY [DIR]",
		Short:   "Show how a caller stands with a limit",
		Long:    "Show how a caller stands with a limit; nothing is taken by it.\n" + counterKey,
		Example: "  writ limits get 'default/reviews/0?source.principal=cluster.local/ns/default/sa/bookinfo-productpage' examples/bookinfo",
		Args:    arguments(1, 2, "a counter, and the mesh directory or none for the current one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return at.show(cmd, &o, args[1:], func(ctx context.Context, l ratelimitpb.LimitsClient) (*ratelimitpb.Counter, error) {
				return l.GetCounter(ctx, &ratelimitpb.GetCounterRequest{Key: args[0]})
			})
		},
	}
	o.register(c)
	at.register(c)
	return c
}

// topCaller is a row of `writ limits top`.
type topCaller struct {
	Key       string `json:"key"`
	Limit     string `json:"limit"`
	Hits      uint64 `json:"hits"`
	Refused   uint64 `json:"refused"`
	Uncertain uint64 `json:"uncertain,omitempty"`
}

func limitsTopCommand() *cobra.Command {
	var o output
	var at ratelimitAt
	req := &ratelimitpb.ListTopRequest{}
	c := &cobra.Command{
		Use:   "top [DIR]",
		Short: "Show who asks most of each limit",
		Long: `Show who asked most of each limit in the last 5 to 10 minutes, as one replica of ratelimit saw it.
A count may be too high by as much as is said to be uncertain, and is never too low.`,
		Example: "  writ limits top examples/bookinfo\n  writ limits top --limit 'QuotaPolicy default/reviews' --callers 3 -o json examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			var rows []topCaller
			err := at.call(cmd.Context(), args, func(ctx context.Context, l ratelimitpb.LimitsClient) error {
				resp, err := l.ListTop(ctx, req)
				for _, t := range resp.GetCallers() {
					rows = append(rows, topCaller{t.GetKey(), t.GetLimit(), t.GetHits(), t.GetRefused(), t.GetUncertain()})
				}
				return err
			})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printTop(w, rows) })
		},
	}
	o.register(c)
	at.register(c)
	c.Flags().StringVar(&req.Limit, "limit", "", "only limits whose `name` begins so")
	c.Flags().Uint32Var(&req.Callers, "callers", 10, "`how many` callers of each limit, at most 100")
	return c
}

func printTop(out io.Writer, rows []topCaller) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "nobody asked")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LIMIT\tHITS\tREFUSED\tUNCERTAIN\tKEY")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", r.Limit, r.Hits, r.Refused, r.Uncertain, printable(r.Key))
	}
	return w.Flush()
}

// limitChange is one of the commands that change a counter.
type limitChange struct {
	name, short string
	hits        bool // it needs a number
	call        func(context.Context, ratelimitpb.LimitsClient, *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error)
}

func limitsChangeCommand(change limitChange) *cobra.Command {
	var o output
	var at ratelimitAt
	var reason string
	var all bool
	number, what, example, own := "", "a counter", "", 1
	if change.hits {
		number, what, example, own = " NUMBER", "a counter and a number", " 100", 2
	}
	c := &cobra.Command{
		Use:   change.name + " KEY" + number + " [DIR]",
		Short: change.short,
		Long: change.short + `. The audit keeps who did it, when and why (writ limits changes).
Where several regions keep a limit together it changes the part of the one whose
ratelimit is asked; with --all-regions the parts of all, if they let this one's operators.
Exit code 2: not changed, or not in all regions that were asked.
` + counterKey,
		Example: "  writ limits " + change.name + " 'default/reviews/0?source.principal=cluster.local/ns/default/sa/a'" + example + " --reason 'ticket 7' examples/bookinfo",
		Args:    arguments(own, own+1, what+", and the mesh directory or none for the current one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &ratelimitpb.ChangeCounterRequest{Key: args[0], Reason: reason, AllRegions: all}
			if reason == "" {
				return errors.New("--reason is missing: the audit keeps why")
			}
			if change.hits {
				n, err := strconv.ParseUint(args[1], 10, 32)
				if err != nil || n == 0 {
					return fmt.Errorf("%q: want a number from 1 to 4294967295", args[1])
				}
				req.Hits = uint32(n)
			}
			var done *ratelimitpb.Counter
			err := at.show(cmd, &o, args[own:], func(ctx context.Context, l ratelimitpb.LimitsClient) (_ *ratelimitpb.Counter, err error) {
				done, err = change.call(ctx, l, req)
				return done, err
			})
			if err != nil {
				return err
			}
			if parts := done.GetRegions(); !all && len(parts) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "only the part of region %s was changed; --all-regions changes those of the others too\n", parts[0].GetRegion())
			}
			return notEverywhere(done)
		},
	}
	o.register(c)
	at.register(c)
	c.Flags().StringVar(&reason, "reason", "", "`why`, for the audit")
	c.Flags().BoolVar(&all, "all-regions", false, "in the other regions too that keep the limit, if they let this one's operators")
	return c
}

// limitChangeRow is a row of `writ limits changes`.
type limitChangeRow struct {
	At        time.Time `json:"at"`
	Actor     string    `json:"actor"`
	What      string    `json:"what"`
	Key       string    `json:"key"`
	Hits      uint32    `json:"hits,omitempty"`
	Reason    string    `json:"reason"`
	Remaining uint32    `json:"remaining"`
	// AllRegions says that it was made in the other regions from there too.
	AllRegions bool `json:"allRegions,omitempty"`
}

// what was changed, for people.
func (r limitChangeRow) what() string {
	if r.AllRegions {
		return r.What + " in all regions"
	}
	return r.What
}

func limitsChangesCommand() *cobra.Command {
	var o output
	var at ratelimitAt
	c := &cobra.Command{
		Use:     "changes [DIR]",
		Short:   "Show what operators changed, the newest first",
		Example: "  writ limits changes examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			var rows []limitChangeRow
			err := at.call(cmd.Context(), args, func(ctx context.Context, l ratelimitpb.LimitsClient) error {
				resp, err := l.ListChanges(ctx, &ratelimitpb.ListChangesRequest{})
				for _, c := range resp.GetChanges() {
					rows = append(rows, limitChangeRow{c.GetAt().AsTime(), c.GetActor(), c.GetWhat(), c.GetKey(), c.GetHits(), c.GetReason(), c.GetRemaining(), c.GetAllRegions()})
				}
				return err
			})
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), rows, func(w io.Writer) error { return printLimitChanges(w, rows) })
		},
	}
	o.register(c)
	at.register(c)
	return c
}

// printable is what a terminal may be shown of what callers, or other regions, made up.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

func printLimitChanges(out io.Writer, rows []limitChangeRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "nothing was changed")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "AT (UTC)\tBY\tWHAT\tHITS\tLEFT BEFORE\tKEY\tWHY")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", utc(r.At), printable(r.Actor), r.what(), r.Hits, r.Remaining, printable(r.Key), printable(r.Reason))
	}
	return w.Flush()
}
