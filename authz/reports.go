package authz

import (
	"context"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/authz/accesslog"
	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
)

// reports puts what Envoys decide themselves into the decision log, the metrics and
// the recording.
type reports struct {
	decisions *decisionlog.Log
	what      string
	redact    *decisionlog.Redactor
	metrics   *metrics
	recorder  *recording.Recorder
	// unknown has pilot look for keys.
	unknown *unknownKeys
}

// take waits while the decision log has no room.
func (s *reports) take(ctx context.Context, r accesslog.Report) error {
	s.unknown.see(r)
	rule, refused := r.Refused()
	observed := r.Observed()
	from, path := r.From(), ""
	if r.HTTP != nil {
		path, _ = s.redact.Path(r.Path())
	}
	s.metrics.wouldRefuse(observed, from, r.To, r.Method(), path)
	if now := time.Now(); s.recorder.Wants(refused || len(observed) > 0, now) {
		s.recorder.Offer(s.seen(r, rule, refused, observed))
	}
	if s.what == logNone || s.what == logRefusals && !refused && len(observed) == 0 {
		return nil
	}
	direct, _ := r.Source()
	record := &decisionlog.Record{
		Time: r.Time(), ID: newID(), RequestID: r.HTTP.GetRequest().GetRequestId(),
		By: decisionlog.ByEnvoy, Decision: decisionlog.Allow, Rule: rule,
		From: from, To: r.To, Proxy: r.Proxy, SourceAddress: direct,
		Method: r.Method(), Host: r.HTTP.GetRequest().GetAuthority(), Path: path,
		Status:  int(r.HTTP.GetResponse().GetResponseCode().GetValue()),
		Latency: r.Common.GetDuration().AsDuration().Microseconds(),
	}
	if refused {
		record.Decision = decisionlog.Refuse
	}
	for _, o := range observed {
		record.Observed = append(record.Observed, decisionlog.Observation{Rule: o})
	}
	return s.decisions.Wait(ctx, record)
}

func (s *reports) seen(r accesslog.Report, rule string, refused bool, observed []string) *recording.Seen {
	out := &recording.Seen{
		Time: r.Time(), From: r.From(), To: r.To, Proxy: r.Proxy, TCP: r.HTTP == nil,
		SNI: r.Common.GetTlsProperties().GetTlsSniHostname(), Allowed: !refused, Rule: rule, Observed: observed,
	}
	out.SourceAddress, out.Remote = r.Source()
	out.Address, out.Port = r.Destination()
	if r.HTTP == nil {
		return out
	}
	req := r.HTTP.GetRequest()
	out.Method, out.Host = r.Method(), req.GetAuthority()
	out.Path, out.Query = s.redact.Path(r.Path())
	if claims := r.Claims(); claims != nil {
		out.Claims = s.redact.Claims(claims)
	}
	out.Headers = map[string]string{}
	add := func(name, value string) {
		if value != "" {
			out.Headers[name] = s.redact.Header(name, value)
		}
	}
	add("user-agent", req.GetUserAgent())
	add("referer", req.GetReferer())
	add("x-forwarded-for", req.GetForwardedFor())
	return out
}

// offer records a request that this service decided, if it is to be.
func (l decisionLog) offer(req *authv3.CheckRequest, v *verdict) {
	if !l.recorder.Wants(!v.allow || len(v.observed) > 0, time.Now()) {
		return
	}
	a := req.GetAttributes()
	http := a.GetRequest().GetHttp()
	to := a.GetDestination().GetAddress().GetSocketAddress()
	out := &recording.Seen{
		Time: time.Now(), From: a.GetSource().GetPrincipal(), To: a.GetDestination().GetPrincipal(),
		SourceAddress: a.GetSource().GetAddress().GetSocketAddress().GetAddress(),
		Address:       to.GetAddress(), Port: to.GetPortValue(), SNI: a.GetTlsSession().GetSni(),
		Method: http.GetMethod(), Host: http.GetHost(), Headers: map[string]string{}, AllHeaders: true,
		Body: http.GetBody() != "" || len(http.GetRawBody()) > 0, Allowed: v.allow,
		Policies: v.names,
	}
	out.Path, out.Query = l.redact.Path(http.GetPath())
	for name, value := range http.GetHeaders() {
		if !recording.Dropped(name) && !strings.HasPrefix(name, ":") { // method, path and host are there
			out.Headers[name] = l.redact.Header(name, value)
		}
	}
	if payload := envoyPayload(req); payload != nil {
		out.Claims = l.redact.Claims(payload.AsMap())
	}
	if v.policy != "" {
		out.Rule = regoKind + v.policy
	}
	for _, o := range v.observed {
		out.Observed = append(out.Observed, regoKind+o.policy)
	}
	l.recorder.Offer(out)
}
