package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// tokenList is a pilot that keeps what is revoked.
type tokenList struct {
	pilotpb.UnimplementedTokenRevocationsServer
	all []*pilotpb.TokenRevocation
}

func (l *tokenList) RevokeTokens(_ context.Context, r *pilotpb.RevokeTokensRequest) (*pilotpb.RevokeTokensResponse, error) {
	l.all = append(l.all, r.GetRevocations()...)
	return &pilotpb.RevokeTokensResponse{Total: uint64(len(l.all)), Remote: len(l.all) > 1000}, nil
}

func (l *tokenList) UnrevokeTokens(_ context.Context, r *pilotpb.UnrevokeTokensRequest) (*pilotpb.UnrevokeTokensResponse, error) {
	resp := &pilotpb.UnrevokeTokensResponse{}
	for _, have := range l.all {
		for _, want := range r.GetRevocations() {
			if have.GetIssuer() == want.GetIssuer() && have.GetJti() == want.GetJti() && have.GetSub() == want.GetSub() {
				resp.Revocations = append(resp.Revocations, have)
			}
		}
	}
	return resp, nil
}

func (l *tokenList) ListRevokedTokens(_ *pilotpb.ListRevokedTokensRequest, s grpc.ServerStreamingServer[pilotpb.ListRevokedTokensResponse]) error {
	return s.Send(&pilotpb.ListRevokedTokensResponse{Revocations: l.all})
}

// fakeJWT is a token with these claims that nobody signed.
func fakeJWT(claims string) string {
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2lnbmF0dXJl"
}

func TestRevokeJWT(t *testing.T) {
	now := time.Now()
	exp := now.Add(time.Hour).Unix()
	files := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(files, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	many := &strings.Builder{}
	for i := range 2500 {
		fmt.Fprintln(many, i)
	}
	for name, c := range map[string]struct {
		args string
		// want are the revocations, as issuer, jti, sub; or part of the message of an error.
		want []string
		bad  string
		// before and until are how far from now, 0 for none.
		before, until time.Duration
	}{
		"a jti":              {args: "--issuer i --jti 1", want: []string{"i/1/"}},
		"jtis with an end":   {args: "--issuer i --jti 1 --jti 2 --until 24h", want: []string{"i/1/", "i/2/"}, until: 24 * time.Hour},
		"a subject":          {args: "--issuer i --sub alice --issued-before now", want: []string{"i//alice"}, before: time.Nanosecond},
		"an issuer":          {args: "--issuer i --issued-before " + now.Add(-time.Hour).UTC().Format(time.RFC3339), want: []string{"i//"}, before: -time.Hour},
		"a whole issuer":     {args: "--issuer i --all", want: []string{"i//"}},
		"a token":            {args: "--token " + file("t", fakeJWT(fmt.Sprintf(`{"iss":"i","jti":"7","exp":%d}`, exp))+"\n"), want: []string{"i/7/"}, until: time.Hour},
		"a file":             {args: "--issuer i --jti-file " + file("l", "a\n\n b \n"), want: []string{"i/a/", "i/b/"}},
		"no issuer":          {args: "--jti 1", bad: "--issuer"},
		"nothing":            {args: "--issuer i", bad: "which tokens"},
		"a bad time":         {args: "--issuer i --sub a --issued-before yesterday", bad: "--issued-before"},
		"a bad end":          {args: "--issuer i --sub a --until -3h", bad: "--until"},
		"a token and a jti":  {args: "--issuer i --token " + file("t2", fakeJWT(`{}`)), bad: "--token"},
		"a token without id": {args: "--token " + file("t3", fakeJWT(`{"iss":"i","sub":"secret-subject"}`)), bad: "no jti"},
		"no token":           {args: "--token " + file("t4", "secret-text"), bad: "three parts"},
		"an empty jti":       {args: "--issuer i --jti=", bad: "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			l := &tokenList{}
			socket := adminServer(t, func(s *grpc.Server) { pilotpb.RegisterTokenRevocationsServer(s, l) })
			var out, errs bytes.Buffer
			code := Main(append(append([]string{"revoke", "jwt"}, strings.Fields(c.args)...), "--admin", socket), &out, &errs)
			if c.bad != "" {
				if code == 0 || !strings.Contains(errs.String(), c.bad) || strings.Contains(errs.String(), "secret") || len(l.all) > 0 {
					t.Errorf("%d %s", code, errs.String())
				}
				return
			}
			var got []string
			for _, r := range l.all {
				got = append(got, r.GetIssuer()+"/"+r.GetJti()+"/"+r.GetSub())
				near := func(name string, at interface{ AsTime() time.Time }, set bool, want time.Duration) {
					if set != (want != 0) || set && at.AsTime().Sub(now.Add(want)).Abs() > time.Minute {
						t.Errorf("%s: %v", name, r)
					}
				}
				near("issued before", r.GetIssuedBefore(), r.GetIssuedBefore() != nil, c.before)
				near("until", r.GetUntil(), r.GetUntil() != nil, c.until)
			}
			if code != 0 || fmt.Sprint(got) != fmt.Sprint(c.want) || !strings.Contains(out.String(), "revoked: ") {
				t.Errorf("%d: %v, want %v\n%s%s", code, got, c.want, out.String(), errs.String())
			}
		})
	}
	l := &tokenList{}
	socket := adminServer(t, func(s *grpc.Server) { pilotpb.RegisterTokenRevocationsServer(s, l) })
	run := func(args ...string) (string, int) {
		var out, errs bytes.Buffer
		code := Main(append(args, "--admin", socket), &out, &errs)
		return out.String() + errs.String(), code
	}
	if out, _ := run("revoke", "ls"); !strings.Contains(out, "no token is revoked") {
		t.Error(out)
	}
	if out, code := run("revoke", "jwt", "--issuer", "i", "--jti-file", file("many", many.String())); code != 0 || len(l.all) != 2500 || !strings.Contains(out, "ask authz") {
		t.Errorf("%d revocations: %s", len(l.all), out)
	}
	var rows []revokedToken
	if out, _ := run("revoke", "ls", "-o", "json"); json.Unmarshal([]byte(out), &rows) != nil || len(rows) != 2500 || rows[0].Issuer != "i" || rows[0].ID != "0" {
		t.Errorf("%d rows", len(rows))
	}
	if out, _ := run("revoke", "ls"); !strings.Contains(out, "jti 0") {
		t.Errorf("%.300s", out)
	}
	if out, code := run("revoke", "undo", "--issuer", "i", "--jti", "17"); code != 0 || !strings.Contains(out, "no longer revoked: jti 17 of i") {
		t.Error(code, out)
	}
	if out, code := run("revoke", "undo", "--issuer", "i", "--jti", "none"); code != 1 || !strings.Contains(out, "nothing of that is revoked") {
		t.Error(code, out)
	}
}
