package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/metadata"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/refusal"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// PoliciesKey is the context extension with the RegoPolicies to decide, each as
// configpb.PolicyRef gives it, separated by commas. See policyRefs for connections.
const PoliciesKey = "writ.policies"

// callMargin is kept of the caller's deadline for the answer's way back.
const callMargin = 5 * time.Millisecond

// maxPolicies bounds the policies that one check may name.
const maxPolicies = 100

// saidNotDecided is what clients are told of a denial that is no policy's decision.
const saidNotDecided = "the request could not be decided"

// server answers checks in the mesh.
type server struct {
	authv3.UnimplementedAuthorizationServer
	policies *policies
	tokens   *tokens
	// revoked is which tokens are revoked, nil if nothing says so.
	revoked  *revokedTokens
	decision DecisionConfig
	asks     *evaluator
	metrics  *metrics
	record   decisionLog
	log      *slog.Logger
}

// Check implements envoy.service.auth.v3.Authorization. It never returns an
// error: a denial has to hold where the caller is open when calls fail.
func (s *server) Check(ctx context.Context, req *authv3.CheckRequest) (resp *authv3.CheckResponse, _ error) {
	start := time.Now()
	v := s.decideSafely(ctx, req, start)
	resp = respond(req, v)
	v.took = time.Since(start)
	s.metrics.counted(v)
	s.observed(req, v)
	s.record.record(req, v)
	return resp, nil
}

// counted counts a verdict.
func (m *metrics) counted(v *verdict) {
	result := resultAllow
	switch {
	case v.failed:
		result = resultError
	case !v.allow:
		result = resultDeny
	}
	m.decisions.WithLabelValues(result).Inc()
	if len(v.earlier) > 0 {
		m.earlier.Inc()
	}
	m.seconds.Observe(v.took.Seconds())
}

func (s *server) decideSafely(ctx context.Context, req *authv3.CheckRequest, start time.Time) (v *verdict) {
	v = &verdict{id: newID()}
	defer func() {
		if p := recover(); p != nil {
			s.log.ErrorContext(ctx, "panic in a decision", slog.String("decision_id", v.id), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			*v = verdict{id: v.id, revision: v.revision, names: v.names}
			v.fail("", saidNotDecided, "panic")
		}
	}()
	deadline := start.Add(s.decision.Timeout.D())
	if d, ok := ctx.Deadline(); ok && d.Add(-callMargin).Before(deadline) {
		deadline = d.Add(-callMargin)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	s.decide(ctx, req, start, v)
	return v
}

// fail makes the verdict a denial that no policy decided.
func (v *verdict) fail(policy, public, detail string) {
	v.allow, v.failed, v.policy, v.public, v.detail = false, true, policy, public, detail
}

func (s *server) decide(ctx context.Context, req *authv3.CheckRequest, now time.Time, v *verdict) {
	set := s.policies.current.Load()
	v.revision = set.revision
	if extensions := req.GetAttributes().GetContextExtensions(); extensions[tokensKey] != "" {
		s.decideToken(req, v)
		return
	}
	refs := policyRefs(ctx, req)
	v.names = namesOf(refs)
	names := v.names
	if len(names) == 0 || len(names) > maxPolicies {
		v.fail("", saidNotDecided, fmt.Sprintf("the check names %d policies in %s, want 1 to %d", len(names), PoliciesKey, maxPolicies))
		return
	}
	if size := requestSize(req); size > s.decision.MaxRequestBytes {
		v.fail(names[0], "the request is too large to be decided", fmt.Sprintf("the request has %d bytes, more than %d", size, s.decision.MaxRequestBytes))
		v.status = http.StatusRequestEntityTooLarge
		return
	}
	set, list := s.find(ctx, refs, now)
	v.revision = set.revision
	if len(list.policies) != len(refs) {
		s.unknown(set, refs[len(list.policies)], v)
		return
	}
	v.earlier = list.retired
	if s.refuseRevoked(req, v) {
		return
	}
	opts := rego.InputOptions{}
	opts.Token, opts.TokenError = s.tokens.find(ctx, req, set.issuers, names, now)
	v.tokens = opts.TokenError
	in, err := rego.NewInput(req, opts)
	if err != nil {
		v.fail(names[0], refusal.Malformed, err.Error())
		v.status = http.StatusBadRequest
		return
	}
	s.evaluate(ctx, list.policies, in, now, v)
}

// unknown refuses what was asked for by a name that nothing is known by.
func (s *server) unknown(set *policySet, ref string, v *verdict) {
	name := configpb.PolicyName(ref)
	reason, detail := unknownName, "the policy is not known at this revision"
	if set.policies[name] != nil {
		reason = unknownContent
		detail = fmt.Sprintf("the content %q of the policy is not known at this revision: the proxy's routes go with an edit that is not here yet, or with one whose time is over", strings.TrimPrefix(ref, name))
	}
	s.metrics.unknown.WithLabelValues(reason).Inc()
	v.fail(name, saidNotDecided, detail)
}

// evaluate asks all policies until one refuses.
func (s *server) evaluate(ctx context.Context, list []*policy, in *rego.Input, now time.Time, v *verdict) {
	v.allow = true
	for _, p := range list {
		if p.observe || v.allow {
			s.ask(ctx, p, in, now, v)
		}
	}
}

func (s *server) ask(ctx context.Context, p *policy, in *rego.Input, now time.Time, v *verdict) {
	d, cached, err := s.asks.eval(ctx, p.program, in, now)
	v.asked(p.program, cached)
	reason := d.Reason
	switch {
	case errors.Is(err, rego.ErrUndefined):
		// A rule without default that does not hold: the usual way to say no.
		p.counts.deny.Inc()
		reason = err.Error()
	case err != nil:
		p.counts.fail.Inc()
		reason = err.Error()
		s.explainFailure(ctx, p, v.id, err)
	case d.Allowed:
		p.counts.allow.Inc()
		// What an observing policy wants done with the request is not done.
		if !p.observe {
			v.decisions = append(v.decisions, d)
		}
		return
	default:
		p.counts.deny.Inc()
	}
	switch {
	case p.observe:
		p.counts.observed.Inc()
		v.observed = append(v.observed, observation{p.name, reason})
	case errors.Is(err, rego.ErrUndefined):
		v.allow, v.policy, v.detail, v.decisions = false, p.name, reason, nil
	case err != nil:
		v.decisions = nil
		v.fail(p.name, saidNotDecided, reason)
	default:
		v.allow, v.policy, v.public, v.detail = false, p.name, d.Reason, reason
		v.decisions = []rego.Decision{d}
	}
}

// explainFailure logs what only operators may see.
func (s *server) explainFailure(ctx context.Context, p *policy, id string, err error) {
	var panicked *rego.PanicError
	if errors.As(err, &panicked) {
		s.log.ErrorContext(ctx, "a policy panicked", slog.String("policy", p.name), slog.String("decision_id", id), slog.Any("error", err), slog.String("stack", string(panicked.Stack)))
	}
}

// found are policies that a check asks for.
type found struct {
	policies []*policy
	// retired are how those of them are named that are retired.
	retired []string
}

// find gives the policies that are named, from one set: all of them, or those before
// the first that is not known. A policy that is not known is waited for: the
// proxy may be a moment ahead.
func (s *server) find(ctx context.Context, refs []string, now time.Time) (*policySet, found) {
	var wait <-chan time.Time
	for {
		set := s.policies.current.Load()
		list := set.list(refs, now)
		if len(list.policies) == len(refs) || s.decision.UnknownPolicyWait <= 0 {
			return set, list
		}
		if wait == nil {
			t := time.NewTimer(s.decision.UnknownPolicyWait.D())
			defer t.Stop()
			wait = t.C
		}
		select {
		case <-set.changed:
		case <-wait:
			return set, list
		case <-ctx.Done():
			return set, list
		}
	}
}

// list gives the named policies up to the first that is not known.
func (s *policySet) list(refs []string, now time.Time) found {
	list := found{policies: make([]*policy, 0, len(refs))}
	for _, ref := range refs {
		p, retired := s.find(ref, now)
		if p == nil {
			break
		}
		list.policies = append(list.policies, p)
		if retired {
			list.retired = append(list.retired, ref)
		}
	}
	return list
}

// policyRefs are the policies that a check asks for. About a connection they are in
// the metadata of the call: Envoy's filter for connections has no context extensions.
func policyRefs(ctx context.Context, req *authv3.CheckRequest) []string {
	s := req.GetAttributes().GetContextExtensions()[PoliciesKey]
	if req.GetAttributes().GetRequest().GetHttp() == nil && s == "" {
		s = strings.Join(metadata.ValueFromIncomingContext(ctx, configpb.PoliciesMetadata), ",")
	}
	if s == "" {
		return nil
	}
	refs := strings.Split(s, ",")
	for i := range refs {
		refs[i] = strings.TrimSpace(refs[i])
	}
	return refs
}

// namesOf gives the names of policies without their contents.
func namesOf(refs []string) []string {
	names := make([]string, len(refs))
	for i, ref := range refs {
		names[i] = configpb.PolicyName(ref)
	}
	return names
}

// requestSize is what of a request a policy's time and memory depend on, in bytes.
func requestSize(req *authv3.CheckRequest) int {
	h := req.GetAttributes().GetRequest().GetHttp()
	n := len(h.GetPath()) + len(h.GetBody()) + len(h.GetRawBody())
	for k, v := range h.GetHeaders() {
		n += len(k) + len(v)
	}
	for _, e := range h.GetHeaderMap().GetHeaders() {
		n += len(e.GetKey()) + len(e.GetValue()) + len(e.GetRawValue())
	}
	return n
}
