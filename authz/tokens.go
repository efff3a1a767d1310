package authz

import (
	"context"
	"errors"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/token"
	"github.com/writ-mesh/writ/internal/identity"
)

// Where Envoy's own filter leaves the payload of a token that it verified.
const (
	jwtFilter  = "envoy.filters.http.jwt_authn"
	jwtPayload = "payload"
)

// maxTokens bounds the tokens that are verified for one request.
const maxTokens = 4

// tokens finds what a policy may know about the caller's token.
type tokens struct {
	fetcher *token.Fetcher
	leeway  time.Duration
	metrics *metrics
	// revoked is which tokens are revoked, nil if nothing says so.
	revoked *revokedTokens
}

// find gives the verified token of a request, or why there is none. A token that
// Envoy verified already is taken over: Envoy is who says what the request is,
// its source included. Else the tokens of the issuers that count for the request
// are verified here, and one bad token means that none is believed.
func (t *tokens) find(ctx context.Context, req *authv3.CheckRequest, issuers []issuer, policies []string, now time.Time) (*rego.Token, string) {
	if v := fromEnvoy(req); v != nil {
		return v, ""
	}
	issuers = scope(issuers, req, policies)
	if len(issuers) == 0 {
		return nil, ""
	}
	http := req.GetAttributes().GetRequest().GetHttp()
	var first *rego.Token
	for _, raw := range find(issuers, token.Request{Headers: http.GetHeaders(), Path: http.GetPath()}) {
		v, err := t.verify(ctx, raw, issuers, now)
		if err != nil {
			t.metrics.tokens.WithLabelValues("refused").Inc()
			return nil, err.Error()
		}
		t.metrics.tokens.WithLabelValues("verified").Inc()
		if first == nil {
			first = v
		}
	}
	return first, ""
}

// fromEnvoy reads the payload that jwt_authn verified.
func fromEnvoy(req *authv3.CheckRequest) *rego.Token {
	payload := envoyPayload(req)
	if payload == nil {
		return nil
	}
	return &rego.Token{Issuer: payload.GetFields()["iss"].GetStringValue(), Payload: payload}
}

// scope keeps the issuers that count everywhere, and those of the namespaces that
// a request has to do with: that of its policies and of the workload that it goes
// to. An issuer of another namespace could say anything about anybody.
func scope(all []issuer, req *authv3.CheckRequest, policies []string) []issuer {
	if len(all) == 0 {
		return nil
	}
	want := make(map[string]bool)
	for _, p := range policies {
		namespace, _, _ := strings.Cut(p, "/")
		want[namespace] = true
	}
	if id, err := spiffeid.FromString(req.GetAttributes().GetDestination().GetPrincipal()); err == nil {
		if namespace, _, ok := identity.WorkloadOf(id); ok {
			want[namespace] = true
		}
	}
	var out []issuer
	for _, i := range all {
		if i.meshWide || want[i.namespace] {
			out = append(out, i)
		}
	}
	return out
}

// find gives the tokens at the issuers' places, each once.
func find(issuers []issuer, r token.Request) []string {
	var out []string
	seen := make(map[string]bool)
	for _, i := range issuers {
		for _, raw := range i.where.Find(r) {
			if !seen[raw] && len(out) < maxTokens {
				seen[raw] = true
				out = append(out, raw)
			}
		}
	}
	return out
}

// verify verifies one token; if its key is not known, the issuer's keys are
// fetched anew and it is verified once more.
func (t *tokens) verify(ctx context.Context, raw string, issuers []issuer, now time.Time) (*rego.Token, error) {
	v, err := token.Verify(raw, t.believed(issuers), now, t.leeway)
	if errors.Is(err, token.ErrUnknownKey) && t.refresh(ctx, raw, issuers, now) {
		v, err = token.Verify(raw, t.believed(issuers), now, t.leeway)
	}
	if err != nil {
		return nil, err
	}
	if err := t.revoked.refuses(v.About); err != nil {
		return nil, err
	}
	return &rego.Token{Issuer: issuers[v.Issuer].issuer, Claims: v.Claims, Expires: v.Expires}, nil
}

func (t *tokens) believed(issuers []issuer) []token.Issuer {
	out := make([]token.Issuer, len(issuers))
	for n, i := range issuers {
		out[n] = token.Issuer{Issuer: i.issuer, Audiences: i.audiences, Keys: i.keys}
		if i.keys == nil {
			out[n].Keys = t.fetcher.Keys(i.uri)
		}
	}
	return out
}

func (t *tokens) refresh(ctx context.Context, raw string, issuers []issuer, now time.Time) bool {
	name, err := token.Peek(raw)
	if err != nil {
		return false
	}
	fetched := false
	for _, i := range issuers {
		if i.keys == nil && i.issuer == name {
			fetched = t.fetcher.Refresh(ctx, i.uri, now) || fetched
		}
	}
	return fetched
}
