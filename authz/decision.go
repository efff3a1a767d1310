package authz

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/authz/rego"
)

// verdict is what came out of a check, for the answer, the log and the metrics.
type verdict struct {
	id       string
	revision string
	allow    bool
	// failed says that the denial is not a policy's decision.
	failed bool
	// policy is the one that refused, "<namespace>/<name>"; empty if none did.
	policy string
	// public is the reason for the client, detail the one for the log.
	public, detail string
	// decisions are those of the policies that allowed, or of the one that refused.
	decisions []rego.Decision
	// status is that of a refusal when no decision sets one.
	status int
	// observed are policies that would have refused, with the reason.
	observed []observation
	tokens   string
	took     time.Duration
}

type observation struct{ policy, reason string }

// newID gives a random UUID (RFC 9562, version 4). It names a decision in logs
// and is no secret.
func newID() string {
	const digits = "0123456789abcdef"
	a, b := rand.Uint64(), rand.Uint64()
	a = a&^0xf000 | 0x4000
	b = b&^(0xc<<60) | 0x8<<60
	var out [36]byte
	n := 0
	for i := range 32 {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			out[n] = '-'
			n++
		}
		w := a
		if i >= 16 {
			w = b
		}
		out[n] = digits[w>>(60-4*(i%16))&0xf]
		n++
	}
	return string(out[:])
}

// decisionLog writes one record for each decision. No header, body, query or
// token is in it.
type decisionLog struct {
	log  *slog.Logger
	what string
}

func (l decisionLog) record(ctx context.Context, req *authv3.CheckRequest, v *verdict) {
	if l.what == logNone || (l.what == logRefusals && v.allow && len(v.observed) == 0) {
		return
	}
	http := req.GetAttributes().GetRequest().GetHttp()
	path, _, _ := strings.Cut(http.GetPath(), "?")
	attrs := make([]slog.Attr, 0, 14)
	attrs = append(attrs,
		slog.String("decision_id", v.id),
		slog.String("revision", v.revision),
		slog.Bool("allow", v.allow),
		slog.String("principal", req.GetAttributes().GetSource().GetPrincipal()),
		slog.String("destination", req.GetAttributes().GetDestination().GetPrincipal()),
		slog.String("method", http.GetMethod()),
		slog.String("path", clip(path, 256)),
		slog.Duration("duration", v.took))
	if id := http.GetHeaders()["x-request-id"]; id != "" {
		attrs = append(attrs, slog.String("request_id", clip(id, 64)))
	}
	if v.policy != "" {
		attrs = append(attrs, slog.String("policy", v.policy))
	}
	if v.detail != "" {
		attrs = append(attrs, slog.String("reason", clip(v.detail, 512)))
	}
	for _, o := range v.observed {
		attrs = append(attrs, slog.Group("observed", slog.String("policy", o.policy), slog.String("reason", clip(o.reason, 512))))
	}
	if v.tokens != "" {
		attrs = append(attrs, slog.String("token", v.tokens))
	}
	l.log.LogAttrs(ctx, slog.LevelInfo, "decision", attrs...)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
