package token

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-mesh/writ/internal/jwks"
)

// web answers by URL and notes when it was asked.
type web struct {
	mu    sync.Mutex
	pages map[string]func(ctx context.Context) (string, error)
	asked map[string][]time.Time
}

func (w *web) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	page := w.pages[r.URL.String()]
	w.asked[r.URL.String()] = append(w.asked[r.URL.String()], time.Now())
	w.mu.Unlock()
	if page == nil {
		return nil, errors.New("no such host")
	}
	body, err := page(r.Context())
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: 200, Status: "200 OK", Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (w *web) set(uri string, page func(context.Context) (string, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pages[uri] = page
}

func (w *web) times(uri string) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[uri]
}

func says(body string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return body, nil }
}

type memory map[string][]byte

func (m memory) LoadKeys(uri string) []byte             { return m[uri] }
func (m memory) SaveKeys(uri string, jwks []byte) error { m[uri] = jwks; return nil }

func fetcher(t *testing.T, store Store) (*Fetcher, *web) {
	w := &web{pages: map[string]func(context.Context) (string, error){}, asked: map[string][]time.Time{}}
	f := NewFetcher(FetcherOptions{Client: &http.Client{Transport: w}, Store: store, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(f.Close)
	return f, w
}

// count is the number of usable keys.
func count(s *jwks.Set) int { return len(find(s, "", false)) }

func published(t *testing.T, kids ...string) string {
	keys := make([]map[string]any, len(kids))
	for i, kid := range kids {
		keys[i] = newSigner(t, "P-256", kid).jwk
	}
	return mustJSON(t, map[string]any{"keys": keys})
}

func TestFetcherKeepsLastGood(t *testing.T) {
	good := published(t, "a")
	synctest.Test(t, func(t *testing.T) {
		store := memory{}
		f, w := fetcher(t, store)
		w.set("https://a/keys", says(good))
		f.Watch([]string{"https://a/keys"})
		synctest.Wait()
		if count(f.Keys("https://a/keys")) != 1 {
			t.Fatal("not fetched at once")
		}
		for _, broken := range []func(context.Context) (string, error){
			says("oops"), says(`{"keys":[]}`), says(strings.Repeat(" ", jwks.MaxSize+10)),
			func(context.Context) (string, error) { return "", errors.New("connection refused") },
		} {
			w.set("https://a/keys", broken)
			time.Sleep(time.Hour) // time of the bubble
			if count(f.Keys("https://a/keys")) != 1 {
				t.Fatal("the last good keys are gone")
			}
		}
		if string(store["https://a/keys"]) != good {
			t.Error("the last good keys were not saved")
		}
		f.Close()
		again, _ := fetcher(t, store)
		again.Watch([]string{"https://a/keys"})
		if count(again.Keys("https://a/keys")) != 1 {
			t.Error("the saved keys are not there after a restart")
		}
		again.Close()
	})
}

func TestFetcherBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, w := fetcher(t, nil)
		f.Watch([]string{"https://dead/keys"})
		time.Sleep(10 * time.Minute) // fake time
		times := w.times("https://dead/keys")
		if first := times[1].Sub(times[0]); first < 750*time.Millisecond || first > 1250*time.Millisecond {
			t.Errorf("second attempt after %v", first)
		}
		for i := range len(times) - 1 {
			if d := times[i+1].Sub(times[i]); d > maxBackoff*5/4 {
				t.Errorf("attempt %d after %v", i+1, d)
			}
		}
		if len(times) < 10 || len(times) > 25 {
			t.Errorf("%d attempts in ten minutes", len(times))
		}
		f.Close()
	})
}

func TestFetcherDeadOneDelaysNoOther(t *testing.T) {
	good := published(t, "a")
	synctest.Test(t, func(t *testing.T) {
		f, w := fetcher(t, nil)
		w.set("https://slow/keys", func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })
		w.set("https://a/keys", says(good))
		f.Watch([]string{"https://slow/keys", "https://a/keys"})
		synctest.Wait()
		if count(f.Keys("https://a/keys")) != 1 || f.Keys("https://slow/keys") != nil {
			t.Error("the good issuer waits for the dead one")
		}
		f.Watch([]string{"https://a/keys"})
		if f.Keys("https://slow/keys") != nil || count(f.Keys("https://a/keys")) != 1 {
			t.Error("what is watched did not follow")
		}
		f.Close()
	})
}

// A token with a new kid makes one fetch, and a flood of them one a second.
func TestFetcherUnknownKid(t *testing.T) {
	first, second := published(t, "a"), published(t, "a", "b")
	synctest.Test(t, func(t *testing.T) {
		const uri = "https://a/keys"
		f, w := fetcher(t, nil)
		w.set(uri, says(first))
		f.Watch([]string{uri})
		synctest.Wait()
		if f.Refresh(t.Context(), uri, time.Now()) {
			t.Error("fetched again within a second")
		}
		time.Sleep(2 * time.Second) // fake time
		w.set(uri, says(second))
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { f.Refresh(t.Context(), uri, time.Now()) })
		}
		all.Wait()
		if n := len(w.times(uri)); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
		if count(f.Keys(uri)) != 2 {
			t.Error("the new key is not known when Refresh returns")
		}
		for range 100 {
			f.Refresh(t.Context(), uri, time.Now())
			time.Sleep(100 * time.Millisecond) // fake time
		}
		if n := len(w.times(uri)) - 2; n > 11 {
			t.Errorf("%d fetches in ten seconds of unknown kids", n)
		}
		if f.Refresh(t.Context(), "https://nobody", time.Now()) {
			t.Error("a place that is not watched was fetched")
		}
		// One who waits for an issuer that hangs waits no longer than he wants to.
		w.set(uri, func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })
		time.Sleep(2 * time.Second) // fake time
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if f.Refresh(ctx, uri, time.Now()) || time.Since(start) != 50*time.Millisecond {
			t.Errorf("waited %v", time.Since(start))
		}
		f.Close()
	})
}

func TestFetcherDiscovery(t *testing.T) {
	good := published(t, "a")
	synctest.Test(t, func(t *testing.T) {
		f, w := fetcher(t, nil)
		uri := DiscoveryURI("https://a/")
		if uri != "https://a/.well-known/openid-configuration" {
			t.Fatal(uri)
		}
		w.set(uri, says(`{"issuer": "https://a", "jwks_uri": "https://a/k"}`))
		w.set("https://a/k", says(good))
		down := DiscoveryURI("https://down")
		w.set(down, says(`{"jwks_uri": "http://down/k"}`))
		w.set("http://down/k", says(good))
		f.Watch([]string{uri, down})
		synctest.Wait()
		if count(f.Keys(uri)) != 1 {
			t.Error("keys were not discovered")
		}
		if f.Keys(down) != nil {
			t.Error("keys came over plain text though the issuer is https")
		}
		f.Close()
	})
}
