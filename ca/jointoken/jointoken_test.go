package jointoken_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/ca/jointoken"
)

func newToken(t testing.TB) jointoken.Token {
	t.Helper()
	token, err := jointoken.New()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestRoundTrip(t *testing.T) {
	token, other := newToken(t), newToken(t)
	got, err := jointoken.Parse(token.Reveal())
	if err != nil || got.ID != token.ID {
		t.Fatalf("got %v, %v", got, err)
	}
	if !got.Matches(token.Hash()) || got.Matches(other.Hash()) || got.Matches(nil) {
		t.Fatal("wrong match")
	}
	if token.ID == other.ID || token.Reveal() == other.Reveal() {
		t.Fatal("two tokens are the same")
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	token := newToken(t)
	secret := strings.Split(token.Reveal(), ".")[2]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if s := fmt.Sprintf(verb, token); strings.Contains(s, secret) || !strings.Contains(s, token.ID) {
			t.Errorf("%s: %s", verb, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	good := newToken(f).Reveal()
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(strings.ToUpper(good))
	f.Add(good + "=")
	f.Add("writ-join..")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := jointoken.Parse(s)
		if err == nil && token.Reveal() != s {
			t.Fatalf("%q and %q are the same token", s, token.Reveal())
		}
	})
}
