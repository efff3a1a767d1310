package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/nodeagent/latest"
)

var (
	domain  = spiffeid.RequireTrustDomainFromString("cluster.local")
	reviews = spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/reviews")
	ratings = spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/ratings")
)

// memory is where a test's authority keeps its keys.
type memory struct{ data []byte }

func (m *memory) Load() ([]byte, error) {
	if m.data == nil {
		return nil, fs.ErrNotExist
	}
	return m.data, nil
}

func (m *memory) Save(data []byte) error { m.data = data; return nil }

// fakeIssuer signs with keys of its own.
type fakeIssuer struct {
	t    *testing.T
	keys *jwtsvid.Keys
	life time.Duration
	// change is what a wrong authority does to a request.
	change func(id *spiffeid.ID, audiences *[]string)

	mu    sync.Mutex
	asked []time.Time
	fails error
	hold  chan struct{}
}

func newIssuer(t *testing.T, life time.Duration) *fakeIssuer {
	t.Helper()
	keys, err := jwtsvid.Open(t.Context(), jwtsvid.Config{
		Storage: new(memory), Life: 1000 * time.Hour, MaxTTL: time.Hour, Log: slog.New(slog.DiscardHandler),
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &fakeIssuer{t: t, keys: keys, life: life}
}

func (f *fakeIssuer) published() Keys {
	f.t.Helper()
	set, _ := f.keys.Current()
	keys, err := ParseKeys(domain, set.JWKS)
	if err != nil {
		f.t.Fatal(err)
	}
	return keys
}

func (f *fakeIssuer) IssueJWT(ctx context.Context, id spiffeid.ID, audiences []string) (string, error) {
	f.mu.Lock()
	f.asked = append(f.asked, time.Now())
	fails, hold := f.fails, f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if fails != nil {
		return "", fails
	}
	if f.change != nil {
		f.change(&id, &audiences)
	}
	tok, err := f.keys.Sign(id, audiences, f.life, time.Now())
	return tok.Compact, err
}

func (f *fakeIssuer) set(fails error, hold chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails, f.hold = fails, hold
}

func (f *fakeIssuer) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) JWTSVID(result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[result]++
}

func newTokens(f *fakeIssuer) (*Tokens, *latest.Value[Keys], *counts) {
	keys, c := new(latest.Value[Keys]), &counts{n: map[string]int{}}
	keys.Set(f.published())
	return NewTokens(TokensConfig{Issuer: f, Keys: keys, Observer: c, Log: slog.New(slog.DiscardHandler)}), keys, c
}

func fetch(t *testing.T, tokens *Tokens, id spiffeid.ID, audiences ...string) string {
	t.Helper()
	tok, err := tokens.Fetch(t.Context(), "p", id, audiences)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// TestTokensAreRenewedAtHalfLife: until then the same one is handed out, for each
// identity and set of audiences its own.
func TestTokensAreRenewedAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIssuer(t, 10*time.Minute)
		tokens, _, c := newTokens(f)
		defer tokens.Close()
		first := fetch(t, tokens, reviews, "a", "b")
		<-time.After(4*time.Minute + 50*time.Second) // fake time
		if fetch(t, tokens, reviews, "b", "a") != first || f.count() != 1 {
			t.Fatal("a token in the first half of its life is not handed out again")
		}
		<-time.After(20 * time.Second) // fake time
		second := fetch(t, tokens, reviews, "a", "b")
		if second == first || f.count() != 2 {
			t.Fatal("no new token at half life")
		}
		for _, other := range []string{fetch(t, tokens, reviews, "a"), fetch(t, tokens, reviews, "b"), fetch(t, tokens, reviews, "ab"), fetch(t, tokens, ratings, "a", "b")} {
			if other == second {
				t.Fatal("a token was handed out for what it is not for")
			}
		}
		if c.n[TokenCached] != 1 || c.n[TokenNew] != 6 || c.n[TokenFailed] != 0 {
			t.Errorf("counted %v", c.n)
		}
	})
}

// TestTokensWhileTheAuthorityIsAway: what is there is handed out until it expires,
// without waiting for long, and never after that.
func TestTokensWhileTheAuthorityIsAway(t *testing.T) {
	for name, hang := range map[string]bool{"refuses connections": false, "does not answer": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newIssuer(t, 10*time.Minute)
				tokens, _, _ := newTokens(f)
				defer tokens.Close()
				first := fetch(t, tokens, reviews, "a")
				var hold chan struct{}
				if hang {
					hold = make(chan struct{})
					defer close(hold)
				}
				f.set(status.Error(codes.Unavailable, "away"), hold)
				for range 9 {
					<-time.After(time.Minute) // fake time
					began := time.Now()
					if fetch(t, tokens, reviews, "a") != first {
						t.Fatal("another token")
					}
					if took := time.Since(began); took > refreshPatience {
						t.Fatalf("it took %s", took)
					}
				}
				<-time.After(time.Minute) // fake time
				if _, err := tokens.Fetch(t.Context(), "p", reviews, []string{"a"}); status.Code(err) != codes.Unavailable {
					t.Fatalf("after its expiry: %v", err)
				}
				f.set(nil, nil)
				<-time.After(tokenTimeout) // fake time
				fetch(t, tokens, reviews, "a")
			})
		})
	}
}

// TestOneRequestForAll: many who want the same token at the same time cost one
// signature, and one who gives up takes nothing from the others.
func TestOneRequestForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIssuer(t, 10*time.Minute)
		tokens, _, _ := newTokens(f)
		defer tokens.Close()
		hold := make(chan struct{})
		f.set(nil, hold)
		impatient, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := tokens.Fetch(impatient, "p", reviews, []string{"a"}); status.Code(err) != codes.Canceled {
				t.Errorf("given up: %v", err)
			}
		})
		synctest.Wait()
		got := make(chan string, 100)
		for range 100 {
			wg.Go(func() { got <- fetch(t, tokens, reviews, "a") })
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(hold)
		wg.Wait()
		close(got)
		for tok := range got {
			if tok != fetch(t, tokens, reviews, "a") {
				t.Fatal("different tokens")
			}
		}
		if f.count() != 1 {
			t.Fatalf("%d requests", f.count())
		}
	})
}

// TestRefusedTokensAreDropped: a workload that the authority refuses has no token
// any more, whatever its life.
func TestRefusedTokensAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIssuer(t, 10*time.Minute)
		tokens, _, _ := newTokens(f)
		defer tokens.Close()
		fetch(t, tokens, reviews, "a")
		<-time.After(6 * time.Minute) // fake time
		f.set(status.Error(codes.PermissionDenied, "not placed"), nil)
		for range 2 {
			if _, err := tokens.Fetch(t.Context(), "p", reviews, []string{"a"}); status.Code(err) != codes.PermissionDenied {
				t.Fatalf("got %v", err)
			}
		}
	})
}

// TestKeysThatAreGone: a token of a key that is no longer trusted is not handed
// out, and one of a key that arrives a moment later is.
func TestKeysThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIssuer(t, 10*time.Minute)
		tokens, keys, _ := newTokens(f)
		defer tokens.Close()
		old := fetch(t, tokens, reviews, "a")
		f.keys = newIssuer(t, 0).keys // all keys are others
		keys.Set(f.published())
		if fetch(t, tokens, reviews, "a") == old {
			t.Fatal("a token of a key that is not trusted")
		}
		f.keys = newIssuer(t, 0).keys
		go func() {
			<-time.After(time.Second) // fake time
			keys.Set(f.published())
		}()
		fetch(t, tokens, reviews, "b")
	})
}

// TestAnswersThatAreNotUsed: an authority that is wrong, or somebody in its place.
func TestAnswersThatAreNotUsed(t *testing.T) {
	for name, change := range map[string]func(f *fakeIssuer){
		"another identity": func(f *fakeIssuer) { f.change = func(id *spiffeid.ID, _ *[]string) { *id = ratings } },
		"another audience": func(f *fakeIssuer) { f.change = func(_ *spiffeid.ID, a *[]string) { *a = []string{"x"} } },
		"one more audience": func(f *fakeIssuer) {
			f.change = func(_ *spiffeid.ID, a *[]string) { *a = append([]string{"x"}, *a...) }
		},
		"another key": func(f *fakeIssuer) { f.keys = newIssuer(f.t, 0).keys },
		"expired":     func(f *fakeIssuer) { f.life = time.Nanosecond },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newIssuer(t, 10*time.Minute)
				tokens, _, _ := newTokens(f)
				defer tokens.Close()
				change(f)
				if tok, err := tokens.Fetch(t.Context(), "p", reviews, []string{"a"}); status.Code(err) != codes.Unavailable {
					t.Fatalf("%q, %v", tok, err)
				}
			})
		})
	}
}

// TestGreedyWorkload: it gets no more than its budget from the authority, holds no
// more than its share of memory, and takes nothing from another.
func TestGreedyWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIssuer(t, 10*time.Minute)
		tokens, _, _ := newTokens(f)
		defer tokens.Close()
		denied := 0
		for i := range 2 * askBurst {
			_, err := tokens.Fetch(t.Context(), "p", reviews, []string{fmt.Sprint(i)})
			switch {
			case status.Code(err) == codes.ResourceExhausted:
				denied++
			case err != nil:
				t.Fatal(err)
			}
		}
		if denied < askBurst-2 || f.count() > askBurst+2 {
			t.Fatalf("%d of %d refused, %d requests", denied, 2*askBurst, f.count())
		}
		fetch(t, tokens, ratings, "a")
		<-time.After(askBurst * askEvery) // fake time
		for i := range askBurst {
			fetch(t, tokens, reviews, fmt.Sprint("more", i))
		}
		tokens.mu.Lock()
		n := len(tokens.held[caller{"p", reviews}].tokens)
		tokens.mu.Unlock()
		if n > maxTokens {
			t.Fatalf("%d tokens are held", n)
		}
		<-time.After(time.Hour) // fake time
		fetch(t, tokens, ratings, "a")
		tokens.mu.Lock()
		_, left := tokens.held[caller{"p", reviews}]
		tokens.mu.Unlock()
		if left {
			t.Fatal("what expired is held")
		}
	})
}

func TestAskingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIssuer(t, 10*time.Minute)
		tokens, _, _ := newTokens(f)
		defer tokens.Close()
		hold := make(chan struct{})
		f.set(nil, hold)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { fetch(t, tokens, reviews, fmt.Sprint(i)) })
		}
		synctest.Wait()
		if n := f.count(); n != maxAsking {
			t.Errorf("%d requests at once", n)
		}
		close(hold)
		wg.Wait()
	})
}

func TestCloseEndsRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newIssuer(t, 10*time.Minute)
		tokens, _, _ := newTokens(f)
		f.set(nil, make(chan struct{}))
		done := make(chan error)
		go func() {
			_, err := tokens.Fetch(t.Context(), "p", reviews, []string{"a"})
			done <- err
		}()
		synctest.Wait()
		tokens.Close()
		if err := <-done; err == nil {
			t.Fatal("no error")
		}
		if _, err := tokens.Fetch(t.Context(), "p", reviews, []string{"a"}); status.Code(err) != codes.Unavailable || errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}
