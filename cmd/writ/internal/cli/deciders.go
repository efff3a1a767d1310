package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/token"
	"github.com/writ-mesh/writ/internal/jwks"
	"github.com/writ-mesh/writ/pilot/explain"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// regoLimit is how long a RegoPolicy may take to answer a question.
	regoLimit = 5 * time.Second
	// clockSkew is what an Envoy grants on the times of tokens.
	clockSkew = time.Minute
)

// deciders answer as authz does: with its packages, in this process.
func deciders(ctx context.Context, now time.Time) explain.Deciders {
	programs := regoPrograms{}
	return explain.Deciders{Now: now, Find: findTokens, Verify: verifyToken, Rego: func(p *model.RegoPolicy, check *authv3.CheckRequest, issuer string, claims map[string]any) (bool, string, error) {
		return programs.decide(ctx, p, check, issuer, claims)
	}}
}

func findTokens(rule *security.JWTRule, headers map[string]string, path string) []string {
	where := token.Locations{Params: rule.GetFromParams(), Cookies: rule.GetFromCookies()}
	for _, h := range rule.GetFromHeaders() {
		where.Headers = append(where.Headers, token.Header{Name: h.GetName(), Prefix: h.GetPrefix()})
	}
	return where.Find(token.Request{Headers: headers, Path: path})
}

// verifyToken verifies by the rule's inline keys. Keys of a URL are not fetched: what
// can be told without them is, and the rest is said to be unknown.
func verifyToken(raw string, rule *security.JWTRule, now time.Time) explain.Verified {
	keys := &jwks.Set{}
	if rule.GetJwks() != "" {
		var err error
		if keys, err = jwks.Parse([]byte(rule.GetJwks())); err != nil {
			keys = &jwks.Set{}
		}
	}
	issuer := token.Issuer{Issuer: rule.GetIssuer(), Audiences: rule.GetAudiences(), Keys: keys}
	_, err := token.Verify(raw, []token.Issuer{issuer}, now, clockSkew)
	remote := rule.GetJwks() == "" && rule.GetJwksUri() != ""
	switch {
	case errors.Is(err, token.ErrUnknownKey) && remote:
		v := explain.Verified{Unknown: true, Reason: "whether the token is valid cannot be told here: its keys are at " + rule.GetJwksUri()}
		v.Claims, err = payload(raw)
		if err != nil {
			return explain.Verified{Reason: err.Error()}
		}
		return v
	case err != nil:
		return explain.Verified{Reason: err.Error(), WrongAudience: errors.Is(err, token.ErrAudience)}
	}
	claims, err := payload(raw)
	if err != nil {
		return explain.Verified{Reason: err.Error()}
	}
	return explain.Verified{Claims: claims}
}

// payload reads the claims of a token without looking at its signature.
func payload(raw string) (map[string]any, error) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return nil, errors.New("token is malformed")
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, errors.New("token is malformed")
	}
	var claims map[string]any
	return claims, json.Unmarshal(data, &claims)
}

// regoPrograms are the policies that were asked so far, or why they do not compile.
type regoPrograms map[*model.RegoPolicy]func() (*rego.Program, error)

func (all regoPrograms) decide(ctx context.Context, p *model.RegoPolicy, check *authv3.CheckRequest, issuer string, claims map[string]any) (bool, string, error) {
	if all[p] == nil {
		all[p] = sync.OnceValues(func() (*rego.Program, error) {
			name := p.Namespace + "/" + p.Name + ".rego"
			return rego.Compile(ctx, rego.Source{Modules: map[string]string{name: p.Module}}, p.Query, rego.Options{})
		})
	}
	program, err := all[p]()
	if err != nil {
		return false, "", err
	}
	var o rego.InputOptions
	if claims != nil {
		raw, err := json.Marshal(claims)
		if err != nil {
			return false, "", err
		}
		o.Token = &rego.Token{Issuer: issuer, Claims: raw}
	}
	in, err := rego.NewInput(check, o)
	if err != nil {
		return false, "", fmt.Errorf("%w, %w", err, explain.ErrMalformed)
	}
	d, err := program.Eval(ctx, in, regoLimit)
	return d.Allowed, d.Reason, err
}
