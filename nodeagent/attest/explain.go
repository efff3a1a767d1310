package attest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// nearestShown is how many registrations an explanation names.
const nearestShown = 5

// refusal is why a caller gets nothing.
type refusal struct {
	// text goes to the caller.
	text string
	// detail has what is for the operator: facts and registrations.
	detail string
}

// Error implements error, for the log.
func (r *refusal) Error() string { return r.text + r.detail }

// GRPCStatus is what the caller gets.
func (r *refusal) GRPCStatus() *status.Status { return status.New(codes.PermissionDenied, r.text) }

func (a *Attestor) refuse(c Caller, m missed) error {
	r := &refusal{text: fmt.Sprintf("caller %s is no workload of node %s: %s (waited %s)", c, a.cfg.Node, m.reason, a.cfg.Wait)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.index.byID) == 0 {
		return r
	}
	r.detail = "; seen: " + strings.Join(m.seen.facts, " ")
	if len(m.seen.unread) > 0 {
		r.detail += "; not seen: " + strings.Join(m.seen.unread, ", ")
	}
	for _, n := range a.index.nearest(m.seen.facts, 1) {
		if len(n.Missing) > 0 {
			r.detail += fmt.Sprintf("; nearest is registration %s of %s, which wants %s", n.ID, n.SPIFFEID, strings.Join(n.Missing, " "))
		}
	}
	return r
}

// Explanation is which identity a process would get, and why.
type Explanation struct {
	// Facts are in written form, sorted; Unread says what could not be found out.
	Facts, Unread []string
	// Workload is nil if the process gets no identity; then Refusal says why.
	Workload *Workload
	// By is what it is recognized by: "process", "user" or "registration ID".
	By      string
	Refusal string
	Nearest []Near
	// Registrations is how many this agent has.
	Registrations int
}

// Explain tells which identity the process would get if it called now. All facts
// are collected, also those that no registration asks for. The error is a gRPC
// status error, NOT_FOUND for a process that does not run.
func (a *Attestor) Explain(ctx context.Context, pid int32) (*Explanation, error) {
	c, err := callerOf(pid)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "process %d: %v", pid, err)
	}
	s := a.collect.collect(ctx, c, allKinds())
	slices.Sort(s.facts)
	a.mu.Lock()
	defer a.mu.Unlock()
	x := &Explanation{Facts: slices.Compact(s.facts), Unread: s.unread, Nearest: a.index.nearest(s.facts, nearestShown), Registrations: len(a.index.byID)}
	w, err := a.resolve(c, s)
	if err != nil {
		x.Refusal = err.Error()
		return x, nil //nolint:nilerr // the refusal is what was asked for
	}
	x.Workload = &w
	_, process := a.process(c)
	switch best := a.index.match(s.facts); {
	case process:
		x.By = "process"
	case w.Registered:
		x.By = "registration " + best[0].id
	default:
		x.By = "user"
	}
	return x, nil
}

// callerOf is the caller that a process would be.
func callerOf(pid int32) (Caller, error) {
	if pid <= 0 {
		return Caller{}, errors.New("want a positive process id")
	}
	p, err := openProcDir(pid, 0)
	if err != nil {
		return Caller{}, err
	}
	defer p.close()
	creds, err := p.creds()
	if err != nil {
		return Caller{}, err
	}
	return Caller{PID: pid, StartTime: p.start, UID: creds.uid, GID: creds.gid}, nil
}
