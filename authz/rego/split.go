package rego

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	oparego "github.com/open-policy-agent/opa/v1/rego"

	"github.com/writ-mesh/writ/internal/regoform"
)

// Bounds of what is looked at: a policy beyond them is evaluated here as before.
const (
	// maxAtoms bounds the conditions that a policy comes to.
	maxAtoms = 5000
	// maxSplits bounds the results that a Splitter remembers.
	maxSplits = 4096
	// splitTimeout and splitMemory, in bytes by which the heap grows meanwhile, bound
	// OPA's partial evaluation of one policy.
	splitTimeout = 2 * time.Second
	splitMemory  = 512 << 20
	// maxReasons bounds the expressions that are named for one policy.
	maxReasons = 20
)

// Splitter says what is known of policies without evaluating them, and remembers
// it. It is safe for concurrent use. The zero value is ready.
type Splitter struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]*regoform.Policy
}

// Split finds by OPA's partial evaluation what a policy says about what an Envoy
// knows of a request. name is the file name in its messages. A policy that does
// not compile is unknown.
func (s *Splitter) Split(name, module, query string) *regoform.Policy {
	key := sha256.Sum256([]byte(query + "\x00" + module))
	s.mu.Lock()
	have := s.known[key]
	s.mu.Unlock()
	if have != nil {
		return have
	}
	p, err := split(name, module, query, splitTimeout)
	if errors.Is(err, errCostly) {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= maxSplits {
		s.known = make(map[[sha256.Size]byte]*regoform.Policy)
	}
	s.known[key] = p
	return p
}

// errCostly is a partial evaluation that was cancelled. Whether that happens depends
// on what else the process does, so it is not remembered.
var errCostly = errors.New("partial evaluation takes too much time or memory")

// watchHeap calls cancel when the heap has grown too much, until stop is called.
func watchHeap(cancel func()) (stop func()) {
	heap := func() uint64 {
		sample := []metrics.Sample{{Name: heapMetric}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	base, done, ended := heap(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				if heap() > base+splitMemory {
					cancel()
					return
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}

// stay is why a whole policy is evaluated here.
type stay struct{ reason regoform.Reason }

func (s *stay) Error() string { return s.reason.Why }

func stays(loc *ast.Location, format string, args ...any) error {
	r := regoform.Reason{Why: fmt.Sprintf(format, args...)}
	if loc != nil {
		r.Line, r.Expression = loc.Row, firstLine(string(loc.Text))
	}
	return &stay{r}
}

// split never panics: what cannot be analysed is unknown.
func split(name, module, query string, limit time.Duration) (p *regoform.Policy, err error) {
	defer func() {
		if v := recover(); v != nil {
			p, err = regoform.Unknown(regoform.Reason{Why: "the analysis failed"}), nil
		}
	}()
	p, err = analyse(name, module, query, limit)
	if err == nil {
		return p, nil
	}
	var s *stay
	if !errors.As(err, &s) {
		return regoform.Unknown(regoform.Reason{Why: err.Error()}), err
	}
	return regoform.Unknown(s.reason), nil
}

func analyse(name, module, query string, limit time.Duration) (*regoform.Policy, error) {
	caps := capabilities(Options{})
	parsed, err := ast.ParseModuleWithOpts(name, module, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: caps})
	if err != nil {
		return nil, stays(nil, "the module does not parse")
	}
	compiler := ast.NewCompiler().WithCapabilities(caps).WithDefaultRegoVersion(ast.RegoV1)
	if compiler.Compile(map[string]*ast.Module{name: parsed}); compiler.Failed() {
		return nil, stays(nil, "the module does not compile")
	}
	ref, err := ast.ParseRef(query)
	if err != nil || !ref.IsGround() {
		return nil, stays(nil, "the query is not the name of a rule")
	}
	p, err := known(compiler, ref, limit)
	var s *stay
	if errors.As(err, &s) {
		p, err = regoform.Unknown(s.reason), nil
	}
	if p != nil {
		p.Requests, p.Ports = requestReads(compiler, ref)
	}
	return p, err
}

// requestReads is what a query reads that only requests have: all but the two ends of
// the connection and its TLS session; and whether it looks at the address that the
// connection came to.
func requestReads(compiler *ast.Compiler, query ast.Ref) (requests []string, ports bool) {
	const destination = "input.attributes.destination.address"
	ofConnections := []string{"input.attributes.source", "input.attributes.destination", "input.attributes.tlsSession", "input.source_principal", "input.version"}
	for _, path := range analyze(compiler, ast.NewBody(ast.NewExpr(ast.NewTerm(query)))).reads.paths("input") {
		below := func(name string) bool {
			rest, ok := strings.CutPrefix(path, name)
			return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
		}
		if !slices.ContainsFunc(ofConnections, below) {
			requests = append(requests, path)
		}
		ports = ports || below(destination) || strings.HasPrefix(destination, path)
	}
	return requests, ports
}

// known is what can be known of a compiled rule.
func known(compiler *ast.Compiler, ref ast.Ref, limit time.Duration) (*regoform.Policy, error) {
	o, err := outcomeOf(compiler, ref)
	if err != nil {
		return nil, err
	}
	var matched bounds
	var reasons []regoform.Reason
	if err = certain(compiler, o.rules); err == nil {
		matched, reasons, err = o.bounds(compiler, ref, limit)
	}
	var s *stay
	if errors.As(err, &s) {
		unknown := regoform.Unknown(s.reason)
		unknown.Plain = o.plain
		return unknown, nil
	}
	if err != nil {
		return nil, err
	}
	return o.policy(matched, reasons), nil
}

// outcome is what the rule of a query may come to: value where a body holds, and
// otherwise where none does.
type outcome struct {
	rules            []*ast.Rule
	value            *ast.Term
	allows, defaults bool
	plain            bool
}

// outcomeOf requires that all bodies of the rule give the same constant, so that
// the order in which they are tried does not count and no two can contradict.
func outcomeOf(compiler *ast.Compiler, ref ast.Ref) (*outcome, error) {
	o := &outcome{rules: compiler.GetRulesExact(ref), plain: true}
	if len(o.rules) == 0 {
		return nil, stays(nil, "the query is not the name of a rule")
	}
	for _, r := range o.rules {
		switch {
		case r.Head.RuleKind() != ast.SingleValue || len(r.Head.Args) > 0 || !r.Head.Ref().IsGround():
			return nil, stays(r.Location, "it is not a rule with one value")
		case r.Else != nil:
			return nil, stays(r.Else.Location, "it has an else")
		case !isConstant(r.Head.Value):
			return nil, stays(r.Location, "its value is computed")
		}
		allows, err := plainDecision(r)
		if err != nil {
			return nil, err
		}
		_, boolean := r.Head.Value.Value.(ast.Boolean)
		o.plain = o.plain && boolean
		switch {
		case r.Default:
			o.defaults = allows
		case o.value == nil:
			o.value, o.allows = r.Head.Value, allows
		case !o.value.Equal(r.Head.Value):
			return nil, stays(r.Location, "the rule has several values, and two at once are an error")
		}
	}
	return o, nil
}

func isConstant(t *ast.Term) bool { return t != nil && ast.IsConstant(t.Value) }

// plainDecision says what a constant decides, if that is all that it wants.
func plainDecision(r *ast.Rule) (allows bool, err error) {
	x, err := ast.JSON(r.Head.Value.Value)
	if err != nil {
		return false, stays(r.Location, "its value is no decision")
	}
	d, err := readDecision(x)
	if err != nil {
		return false, stays(r.Location, "its value is no decision")
	}
	extras := len(d.Headers)+len(d.ResponseHeaders)+len(d.RemoveHeaders)+len(d.SetQuery)+len(d.RemoveQuery) > 0 || d.Body != "" || d.Reason != "" || d.Metadata != nil
	if extras || d.Status != 0 && d.Status != 403 {
		return false, stays(r.Location, "the decision has more than allowed: status, headers, body or the like")
	}
	return d.Allowed, nil
}

// bounds asks OPA for which requests a body of the rule holds.
func (o *outcome) bounds(compiler *ast.Compiler, ref ast.Ref, limit time.Duration) (bounds, []regoform.Reason, error) {
	if o.value == nil {
		return exactly(regoform.False()), nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	defer watchHeap(cancel)()
	LimitBuiltins()
	partial, err := oparego.New(
		oparego.Compiler(compiler),
		oparego.ParsedQuery(ast.NewBody(ast.Equality.Expr(ast.NewTerm(ref), o.value))),
		oparego.ParsedUnknowns([]*ast.Term{ast.NewTerm(ast.InputRootRef)}),
	).Partial(ctx)
	if ctx.Err() != nil {
		return bounds{}, nil, errCostly
	}
	if err != nil {
		return bounds{}, nil, stays(o.rules[0].Location, "partial evaluation: %s", oneLine(err))
	}
	r := &residue{support: map[string][]*ast.Rule{}, left: maxAtoms, named: map[regoform.Reason]bool{}}
	for _, m := range partial.Support {
		for _, rule := range m.Rules {
			path := m.Package.Path.Extend(rule.Head.Ref()).String()
			r.support[path] = append(r.support[path], rule)
		}
	}
	matched := r.anyBody(partial.Queries)
	if matched.lo.Atoms()+matched.hi.Atoms() > maxAtoms || r.left <= 0 {
		return bounds{}, nil, stays(o.rules[0].Location, "it comes to more than %d conditions", maxAtoms)
	}
	return matched, r.reasons, nil
}

// policy turns what is known of the bodies into what is known of the decision. A
// request whose path or query is malformed is refused whatever the policy says,
// as NewInput refuses it.
func (o *outcome) policy(matched bounds, reasons []regoform.Reason) *regoform.Policy {
	var allowed bounds
	switch matches := o.allows && o.value != nil; {
	case matches && o.defaults:
		allowed, reasons = exactly(regoform.Always()), nil
	case matches:
		allowed = matched
	case o.defaults:
		allowed = matched.not()
	default:
		allowed, reasons = exactly(regoform.False()), nil
	}
	return &regoform.Policy{Malformed: malformedTarget(), Surely: allowed.lo, Perhaps: allowed.hi, Remote: reasons, Plain: o.plain}
}

// bounds enclose when something holds: it does where lo does, and does not where
// hi does not.
type bounds struct{ lo, hi *regoform.Formula }

func exactly(f *regoform.Formula) bounds { return bounds{f, f} }

func anything() bounds { return bounds{regoform.False(), regoform.Always()} }

// unless is exact but for odd requests, for which nothing is known.
func unless(odd, f *regoform.Formula) bounds {
	return bounds{regoform.And(f, regoform.Not(odd)), regoform.Or(f, odd)}
}

func (b bounds) not() bounds { return bounds{regoform.Not(b.hi), regoform.Not(b.lo)} }

func allOf(bs ...bounds) bounds {
	lo, hi := make([]*regoform.Formula, len(bs)), make([]*regoform.Formula, len(bs))
	for i, b := range bs {
		lo[i], hi[i] = b.lo, b.hi
	}
	return bounds{regoform.And(lo...), regoform.And(hi...)}
}

func anyOf(bs ...bounds) bounds {
	lo, hi := make([]*regoform.Formula, len(bs)), make([]*regoform.Formula, len(bs))
	for i, b := range bs {
		lo[i], hi[i] = b.lo, b.hi
	}
	return bounds{regoform.Or(lo...), regoform.Or(hi...)}
}

func firstLine(s string) string {
	line, _, more := strings.Cut(strings.TrimSpace(s), "\n")
	if more {
		line += " ..."
	}
	return clipped(line)
}

func clipped(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "..."
	}
	return s
}
