package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/cmd/writ/internal/check"
	"github.com/writ-mesh/writ/pilot/explain"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/translate"
)

// asked are the flags that describe a request.
type asked struct {
	from, to, method, path, host, jwt, sourceIP, sni string
	headers                                          []string
	port                                             uint32
}

// registerRequest adds the flags that describe what is called.
func (a *asked) registerRequest(c *cobra.Command) {
	c.Flags().StringVar(&a.to, "to", "", "what is called: a `service`, a workload or a gateway, perhaps with :PORT")
	c.Flags().StringVar(&a.method, "method", "GET", "the request's `method`")
	c.Flags().StringVar(&a.path, "path", "/", "the request's `path`, perhaps with a query")
	c.Flags().StringVar(&a.host, "host", "", "the request's `host`, if it is not --to")
	c.Flags().Uint32Var(&a.port, "port", 0, "the called `port`, where there are several")
}

// registerCaller adds those that describe who calls.
func (a *asked) registerCaller(c *cobra.Command) {
	c.Flags().StringVar(&a.from, "from", "", "who calls: a `workload`, NAMESPACE/ACCOUNT, a SPIFFE ID, or outside")
	c.Flags().StringArrayVar(&a.headers, "header", nil, "a header of the request, `NAME=VALUE`; may be given several times")
	c.Flags().StringVar(&a.jwt, "jwt", "", "a `file` with the caller's token")
	c.Flags().StringVar(&a.sourceIP, "source-ip", "", "the caller's `address`, if it is not that of its workload")
	c.Flags().StringVar(&a.sni, "sni", "", "the server `name` of the TLS connection")
}

func (a *asked) question() (explain.Question, error) {
	q := explain.Question{From: a.from, To: a.to, Port: a.port, Method: a.method, Path: a.path, Host: a.host, SNI: a.sni}
	if a.to == "" {
		return q, errors.New("name what is called: --to SERVICE")
	}
	var err error
	if q.Headers, q.Lines, err = parseHeaders(a.headers); err != nil {
		return q, err
	}
	if a.jwt != "" {
		data, err := os.ReadFile(a.jwt)
		if err != nil {
			return q, err
		}
		q.Token = strings.TrimSpace(string(data))
	}
	if a.sourceIP != "" {
		if q.SourceIP, err = netip.ParseAddr(a.sourceIP); err != nil {
			return q, fmt.Errorf("--source-ip: %w", err)
		}
	}
	return q, nil
}

const explainLong = `Tell what becomes of a request, and why: the decision, the rule that made it with
file and line, what was asked before it and where that runs, and every rule that
one single condition kept from matching. It is answered from the files of a mesh
directory, valid ones, and nothing has to run; with --live from what pilot has in
force. Tokens are verified by keys that stand in the files, and Rego is evaluated
as authz does. What a CUSTOM provider would answer, and what is left of a quota,
nobody can tell beforehand, nor files what is revoked and what lists from elsewhere
have, which --live knows: it is said so.
Exit code 0: the request passes; 1: it is refused; 2: cannot tell.`

// explainRequest answers `writ explain --from A --to B`.
func explainRequest(ctx context.Context, w io.Writer, o *output, src *meshSource, a *asked, args []string) error {
	if a.from == "" {
		return errors.New("name who calls: --from WORKLOAD, or NAMESPACE/ACCOUNT, or outside")
	}
	q, err := a.question()
	if err != nil {
		return err
	}
	m, err := src.read(ctx, args)
	if err != nil {
		return err
	}
	d := placed(deciders(ctx, time.Now()), m)
	q.Live, d.Revoked = src.running(), src.revoked(ctx, args)
	answer, err := explain.Request(m, q, d)
	if err != nil {
		return err
	}
	if err := o.print(w, answer, func(w io.Writer) error { return printAnswer(w, answer) }); err != nil {
		return err
	}
	switch answer.Decision() {
	case explain.Allowed:
		return nil
	case explain.Refused:
		return errNo
	}
	return codeError{errors.New("the decision depends on what cannot be told here"), exitCannotTell}
}

// placed says of each RegoPolicy where it is decided, and why not in the Envoy, and how
// callers' Envoys speak where DestinationRules have a say.
func placed(d explain.Deciders, m *model.Mesh) explain.Deciders {
	compiler, err := security.New(m)
	if err != nil {
		return d
	}
	if auto := m.Config.GetEnableAutoMtls(); len(m.DestinationRules) > 0 || auto != nil && !auto.GetValue() {
		if t, err := translate.New(m, compiler); err == nil {
			d.Sends = t.Sends
		}
	}
	d.Where = func(proxy *model.Proxy, port model.WorkloadPort, policy *model.RegoPolicy) (runs, why string) {
		for _, p := range compiler.RegoPlacements(proxy, port) {
			if p.Policy != policy.Ref {
				continue
			}
			for _, r := range p.Remote {
				why += "; " + strings.TrimSpace("at authz because of "+r.Expression) + fmt.Sprintf(" (%s:%d): %s", r.File, r.Line, r.Why)
			}
			return p.Runs, strings.TrimPrefix(why, "; ")
		}
		return "authz", ""
	}
	return d
}

func printAnswer(w io.Writer, a *explain.Answer) error {
	from := a.From
	if from == "" {
		from = "nobody of the mesh"
	}
	for i, t := range a.Targets {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s: %s %s, %s to %s port %d\n", t.Decision, a.Question.Method, a.Question.Path, from, t.Workload, t.Port)
		if t.By != "" {
			fmt.Fprintf(w, "  by %s%s\n", t.By, at(t.At))
		}
		if t.Status != 0 {
			fmt.Fprintf(w, "  the caller gets %d\n", t.Status)
		}
		fmt.Fprintln(w, "ASKED, IN THIS ORDER")
		for _, s := range t.Steps {
			fmt.Fprintf(w, "  %s: %s", s.Name, s.Result)
			for _, text := range []string{s.By + at(s.At), s.Detail, "in " + s.Runs} {
				if text != "" {
					fmt.Fprintf(w, "; %s", text)
				}
			}
			fmt.Fprintln(w)
		}
		printNear(w, t.Near)
		unknown := "NOT KNOWN WITHOUT A MESH THAT RUNS (--live)"
		if a.Question.Live {
			unknown = "NOT KNOWN"
		}
		printList(w, unknown, t.Unknown)
	}
	return nil
}

func printList(w io.Writer, head string, list []string) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w, head)
	for _, one := range list {
		fmt.Fprintln(w, "  "+one)
	}
}

// maxNear is how many rules that came near are told; with thousands of policies on a
// workload most are. JSON has all.
const maxNear = 50

func printNear(w io.Writer, near []explain.Near) {
	if len(near) == 0 {
		return
	}
	fmt.Fprintln(w, "NEAR: RULES THAT ONE CONDITION KEEPS FROM MATCHING")
	for i, n := range near {
		if i == maxNear {
			fmt.Fprintf(w, "  and %d more (-o json tells all)\n", len(near)-i)
			break
		}
		fmt.Fprintf(w, "  %s %s%s: %s wants %s, the request has %s\n", n.Action, n.Rule, at(n.At), n.Field, n.Wants, n.Has)
	}
}

func at(place string) string {
	if place == "" {
		return ""
	}
	return " (" + place + ")"
}

func whoCanCommand() *cobra.Command {
	var o output
	var src meshSource
	var a asked
	c := &cobra.Command{
		Use:   "whocan [DIR]",
		Short: "List who may send a request",
		Long: `List who may send a request: the identities of the mesh's workloads that get through,
and statements that cover everybody, with the conditions that remain, all of which
have to hold. It is exact, by computation with sets of requests; where somebody
else has a say (a CUSTOM provider, Rego, a quota) it is told.
Exit code 0: somebody may; 1: nobody; 2: cannot tell.`,
		Example: "  writ whocan --to ratings --method POST --path /ratings/1 examples/bookinfo",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := a.question()
			if err != nil {
				return err
			}
			m, err := src.read(cmd.Context(), args)
			if err != nil {
				return err
			}
			q.Live = src.running()
			callers, err := explain.WhoCan(m, q)
			if err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), callers, func(w io.Writer) error { return printCallers(w, callers) }); err != nil {
				return err
			}
			if !slices.ContainsFunc(callers, func(c explain.Callers) bool { return len(c.Statements) > 0 }) {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	src.register(c)
	a.registerRequest(c)
	return c
}

func printCallers(w io.Writer, all []explain.Callers) error {
	for i, c := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "TO %s port %d\n", c.Workload, c.Port)
		if len(c.Statements) == 0 {
			fmt.Fprintln(w, "  nobody")
		}
		for _, one := range c.Known {
			fmt.Fprintln(w, "  "+callerLine(one))
		}
		fmt.Fprintln(w, "IN GENERAL")
		for _, one := range c.Statements {
			fmt.Fprintln(w, "  "+callerLine(one))
		}
		printNotes(w, c.Notes)
	}
	return nil
}

func callerLine(c explain.Caller) string {
	line := c.Who
	for i, condition := range c.Conditions {
		word := " and "
		if i == 0 {
			word = ", if "
		}
		line += word + condition.String()
	}
	if c.Result != explain.Allowed {
		line += ": " + c.Result
	}
	return line
}

func printNotes(w io.Writer, notes []string) { printList(w, "NOT EXACT, OR NOT COMPARED", notes) }

func diffCommand() *cobra.Command {
	var o output
	c := &cobra.Command{
		Use:   "diff DIR1 DIR2",
		Short: "List the requests that two mesh directories decide differently",
		Long: `List the callers and requests whose decision differs between two mesh directories.
The answer is exact: it is computed with sets of requests and not with samples.
Where it cannot be (Rego or keys that differ, what a CUSTOM provider answers) that
is told.
Exit code 0: no decision differs; 1: some do; 2: cannot tell.`,
		Example: "  writ diff examples/bookinfo /tmp/candidate",
		Args:    arguments(2, 2, "two mesh directories"),
		RunE: func(cmd *cobra.Command, args []string) error {
			before, err := readMesh(args[0])
			if err != nil {
				return err
			}
			after, err := readMesh(args[1])
			if err != nil {
				return err
			}
			d, err := explain.Diff(before, after)
			if err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), d, func(w io.Writer) error { return printDifferences(w, d) }); err != nil {
				return err
			}
			if len(d.Flips) > 0 {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	return c
}

func printDifferences(w io.Writer, d *explain.Differences) error {
	if len(d.Flips) == 0 {
		fmt.Fprintln(w, "no decision differs")
	}
	for _, f := range d.Flips {
		fmt.Fprintf(w, "%s is now %s at %s\n", f.Before, f.After, strings.Join(f.Workloads, ", "))
		for _, c := range f.Conditions {
			fmt.Fprintln(w, "  "+c.String())
		}
		fmt.Fprintf(w, "  callers of the mesh: %s\n", check.Dash(strings.Join(f.Callers, ", ")))
		fmt.Fprintf(w, "  for example %s\n    before: %s\n    now:    %s\n", f.Example, f.ByBefore, f.ByAfter)
	}
	printNotes(w, d.Notes)
	return nil
}
