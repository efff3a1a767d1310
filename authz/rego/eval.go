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
	// errTimeout: the policy did not come to an end within its limit.
	errTimeout = errors.New("evaluation took too long")
)

// PanicError is a panic inside of the evaluation. Its text names the value
// only; the stack is for the log.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("evaluation panicked: %v", e.Value) }

// Eval decides a request. An error is ErrUndefined, a time-out, a
// *PanicError, a *FormError, or Rego's own; all of them mean denial. A limit of
// zero or less is no limit beyond ctx.
func (p *Program) Eval(ctx context.Context, in *Input, limit time.Duration) (d Decision, err error) {
	defer func() {
		if v := recover(); v != nil {
			d, err = Decision{}, &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	if ctx.Err() != nil {
		return Decision{}, errTimeout
	}
	cancel := topdown.NewCancel()
	// A timer costs less than the goroutine for each query that watches ctx
	// otherwise. ctx's own deadline is in limit already; its cancellation (the
	// caller went away) does not hurry an evaluation that is bounded anyway.
	if deadline, ok := ctx.Deadline(); ok {
		if left := time.Until(deadline); limit <= 0 || left < limit {
			limit = left
		}
	}
	if limit > 0 {
		t := time.AfterFunc(limit, cancel.Cancel)
		defer t.Stop()
	}
	rs, err := p.prepared.Eval(ctx,
		oparego.EvalParsedInput(in.value),
		oparego.EvalTransaction(p.txn),
		oparego.EvalMetrics(metrics.NoOp()),
		oparego.EvalExternalCancel(cancel),
		oparego.EvalInterQueryBuiltinCache(p.web),
		oparego.EvalInterQueryBuiltinValueCache(p.values),
		oparego.EvalGenerateJSON(keepTerm))
	switch {
	case err != nil && (topdown.IsCancel(err) || errors.Is(err, context.DeadlineExceeded)):
		return Decision{}, errTimeout
	case err != nil:
		return Decision{}, oneLine(err)
	case len(rs) == 0:
		return Decision{}, ErrUndefined
	case len(rs) > 1:
		return Decision{}, formError("the query has %d results instead of one", len(rs))
	}
	return decisionOf(rs[0].Expressions[0].Value)
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
	x, err := ast.JSON(term.Value)
	if err != nil {
		return Decision{}, formError("%v", err)
	}
	return readDecision(x)
}
