package rego

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// The ways in which an evaluation gives no decision. Each means denial.
var (
	// ErrUndefined: no rule gave a value.
	ErrUndefined = errors.New("undefined decision")
	// ErrTimeout: the policy did not come to an end within its limit.
	ErrTimeout = errors.New("evaluation took too long")
	// ErrMemory: memory ran short during the evaluation, see Options.Memory.
	ErrMemory = errors.New("evaluation took too much memory")
	// ErrStuck: too many evaluations of the policy that were cancelled have not ended.
	ErrStuck = errors.New("evaluations of the policy do not end")
)

const (
	// grace is how long an evaluation may take to notice that it is cancelled before
	// Eval returns without it.
	grace = 50 * time.Millisecond
	// maxStuck bounds the evaluations of one program that go on after Eval returned:
	// each is inside of a built-in function and holds a processor.
	maxStuck = 4
	// maxResult bounds a decision in bytes of text. What goes to an Envoy has far less.
	maxResult = 1 << 20
)

// PanicError is a panic inside of the evaluation. Its text names the value
// only; the stack is for the log.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("evaluation panicked: %v", e.Value) }

// Eval decides a request. An error is ErrUndefined, ErrTimeout, ErrMemory, ErrStuck,
// a *PanicError, a *FormError, or Rego's own; all of them mean denial. A limit of
// zero or less is no limit beyond ctx.
func (p *Program) Eval(ctx context.Context, in *Input, limit time.Duration) (Decision, error) {
	return p.evalOn(ctx, nil, in, limit)
}

func (p *Program) evalOn(ctx context.Context, workers *Workers, in *Input, limit time.Duration) (Decision, error) {
	if ctx.Err() != nil {
		return Decision{}, ErrTimeout
	}
	if p.stuck.Load() >= maxStuck {
		return Decision{}, ErrStuck
	}
	doc, err := in.document(p.reads)
	if err != nil {
		return Decision{}, &InputError{err}
	}
	// A timer costs less than the goroutine for each query that watches ctx
	// otherwise. ctx's own deadline is in limit already; its cancellation (the
	// caller went away) does not hurry an evaluation that is bounded anyway.
	if deadline, ok := ctx.Deadline(); ok {
		if left := time.Until(deadline); limit <= 0 || left < limit {
			limit = left
		}
	}
	w := newWatch(limit, p.memory)
	defer w.stop()
	return p.run(w, workers, func() (Decision, error) { return p.eval(ctx, doc, w) })
}

// run evaluates on a goroutine of its own, so that an evaluation that does not end
// holds no request.
func (p *Program) run(w *watch, workers *Workers, eval func() (Decision, error)) (Decision, error) {
	done := make(chan result, 1)
	workers.start(func() {
		var r result
		r.decision, r.err = eval()
		if w.ended() {
			p.stuck.Add(-1)
		}
		done <- r
	})
	select {
	case r := <-done:
		return r.decision, r.err
	case <-w.overdue:
		if w.abandon(&p.stuck) {
			return Decision{}, w.reason()
		}
		r := <-done
		return r.decision, r.err
	}
}

type result struct {
	decision Decision
	err      error
}

func (p *Program) eval(ctx context.Context, doc ast.Value, w *watch) (d Decision, err error) {
	defer recovered(&d, &err)
	rs, err := p.prepared.Eval(ctx,
		oparego.EvalParsedInput(doc),
		oparego.EvalTransaction(p.txn),
		oparego.EvalMetrics(metrics.NoOp()),
		oparego.EvalExternalCancel(w.cancel),
		oparego.EvalInterQueryBuiltinCache(p.web),
		oparego.EvalInterQueryBuiltinValueCache(p.values),
		oparego.EvalGenerateJSON(keepTerm))
	switch {
	case err != nil && (topdown.IsCancel(err) || errors.Is(err, context.DeadlineExceeded)):
		return Decision{}, w.reason()
	case err != nil:
		return Decision{}, oneLine(err)
	case len(rs) == 0:
		return Decision{}, ErrUndefined
	case len(rs) > 1:
		return Decision{}, formError("the query has %d results instead of one", len(rs))
	}
	return decisionOf(rs[0].Expressions[0].Value)
}

// recovered makes an error of a panic. It is deferred.
func recovered(d *Decision, err *error) {
	if v := recover(); v != nil {
		*d, *err = Decision{}, &PanicError{Value: v, Stack: debug.Stack()}
	}
}

// keepTerm leaves the result as it is: most decisions are a boolean, which
// needs no conversion.
func keepTerm(t *ast.Term, _ *oparego.EvalContext) (any, error) { return t, nil }

func decisionOf(v any) (Decision, error) {
	term, ok := v.(*ast.Term)
	if !ok {
		return readDecision(v)
	}
	if b, ok := term.Value.(ast.Boolean); ok {
		return Decision{Allowed: bool(b)}, nil
	}
	left := maxResult
	if !fits(term.Value, &left) {
		return Decision{}, formError("it has more than %d bytes", maxResult)
	}
	x, err := ast.JSON(term.Value)
	if err != nil {
		return Decision{}, formError("%v", err)
	}
	d, err := readDecision(x)
	d.size = maxResult - left
	return d, err
}
