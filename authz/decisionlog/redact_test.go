package decisionlog_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/authz/decisionlog"
)

// jwt is one that anybody can see through; its signature is none.
const jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"

func TestRedactor(t *testing.T) {
	r := decisionlog.NewRedactor([]string{"X-Pin"}, []string{"Ticket"}, []string{"email"})
	header := func(name, value string) string { return r.Header(name, value) }
	query := func(_, q string) string { return r.Query(q) }
	path := func(_, p string) string {
		plain, query := r.Path(p)
		return plain + " " + query
	}
	claim := func(name, value string) string {
		var v any
		if err := json.Unmarshal([]byte(value), &v); err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(r.Claim(name, v))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const gone = decisionlog.Redacted
	for _, c := range []struct {
		f                 func(name, value string) string
		name, value, want string
	}{
		{header, "Authorization", "Basic YWxpY2U6cHc=", gone},
		{header, "cookie", "a=b", gone},
		{header, "x-auth-token", "1", gone},
		{header, "x-pin", "1234", gone},
		{header, "x-user", "alice", "alice"},
		{header, "x-note", "Bearer abcdef", gone},
		{header, "x-note", "see " + jwt + " there", "see " + gone + " there"},
		{header, ":path", "/x?a=1&access_token=s3cr3t", "/x?a=1&access_token=" + gone},
		{header, "referer", "https://shop.example/x?code=s3cr3t", "https://shop.example/x?code=" + gone},
		{header, "accept", "application/json", "application/json"},
		{query, "", "a=1&access_token=x&b", "a=1&access_token=" + gone + "&b"},
		{query, "", "ticket=x", "ticket=" + gone},
		{query, "", "%61ccess_token=x", "%61ccess_token=" + gone},
		{query, "", "a%zz=x", "a%zz=" + gone},
		{query, "", "q=" + jwt, "q=" + gone},
		{query, "", "q=eyJhbGciOiJSUzI1NiJ9%2EeyJzdWIiOiJhbGljZSJ9%2Ec2ln", "q=" + gone},
		{path, "", "/reviews/1?x=1&password=p", "/reviews/1 x=1&password=" + gone},
		{path, "", "/magic/" + jwt + "/x", "/magic/" + gone + "/x "},
		{path, "", "/magic/eyJhbGciOiJSUzI1NiJ9%2eeyJzdWIiOiJhbGljZSJ9%2e", gone + " "},
		{claim, "sub", `"alice"`, `"alice"`},
		{claim, "email", `"a@b.example"`, `"` + gone + `"`},
		{claim, "realm", `{"roles":["admin"],"email":"a@b.example","act":["` + jwt + `"]}`, `{"act":["` + gone + `"],"email":"` + gone + `","roles":["admin"]}`},
		{claim, "n", `1`, `1`},
	} {
		if got := c.f(c.name, c.value); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.name, c.value, got, c.want)
		}
	}
}

// FuzzPath: a token is never written down, wherever in a path or query it is.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/a", "/a?b=", "/%2e%2e/", "?", "/a?b&c=%", "a=b;c="} {
		f.Add(s, "/tail?x=1")
	}
	r := decisionlog.NewRedactor(nil, nil, nil)
	f.Fuzz(func(t *testing.T, before, after string) {
		plain, query := r.Path(before + jwt + after)
		if strings.Contains(plain+"?"+query, jwt) {
			t.Errorf("%q, %q has the token", plain, query)
		}
	})
}
