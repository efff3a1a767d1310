package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/internal/jwks"
)

// The rhythm of fetching keys.
const (
	// refreshEvery is Istio's default (PILOT_JWT_PUB_KEY_REFRESH_INTERVAL).
	refreshEvery = 20 * time.Minute
	minBackoff   = time.Second
	maxBackoff   = time.Minute
	// minInterval is between two fetches for the sake of an unknown kid.
	minInterval  = time.Second
	fetchTimeout = 5 * time.Second
	maxRedirects = 3
)

// discoveryPath is that of OpenID Connect Discovery 1.0, section 4.
const discoveryPath = "/.well-known/openid-configuration"

// Store keeps the last good key set of a place over a restart.
type Store interface {
	// LoadKeys returns what was saved for uri, or nil.
	LoadKeys(uri string) []byte
	// SaveKeys keeps a document that jwks.Parse took.
	SaveKeys(uri string, document []byte) error
}

// Fetcher fetches key sets by URI. Each URI has its own rhythm, back-off and
// last good set, so that a dead one delays no other. It is safe for concurrent use.
type Fetcher struct {
	client *http.Client
	store  Store
	log    *slog.Logger
	// Fetched is called after each attempt, for metrics; may be nil.
	fetched func(uri string, err error)

	mu    sync.Mutex
	feeds map[string]*feed
	wait  sync.WaitGroup
	ctx   context.Context //nolint:containedctx // the life of the fetcher, ended by Close
	stop  context.CancelFunc
}

// FetcherOptions are the collaborators of a Fetcher. Client nil means the
// system's roots and proxies; Store and Fetched may be nil.
type FetcherOptions struct {
	Client  *http.Client
	Store   Store
	Log     *slog.Logger
	Fetched func(uri string, err error)
}

// NewFetcher returns a fetcher without places. Close ends it.
func NewFetcher(o FetcherOptions) *Fetcher {
	if o.Client == nil {
		o.Client = &http.Client{
			Timeout: fetchTimeout,
			CheckRedirect: func(r *http.Request, via []*http.Request) error {
				if len(via) > maxRedirects || (via[0].URL.Scheme == "https" && r.URL.Scheme != "https") {
					return errors.New("redirect refused")
				}
				return nil
			},
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Fetcher{client: o.Client, store: o.Store, log: o.Log, fetched: o.Fetched, feeds: make(map[string]*feed), ctx: ctx, stop: stop}
}

// Close ends all fetching and waits for it. It is idempotent.
func (f *Fetcher) Close() {
	f.stop()
	f.wait.Wait()
}

// feed is one place.
type feed struct {
	keys atomic.Pointer[jwks.Set]
	// ask wakes the loop.
	ask  chan struct{}
	stop context.CancelFunc

	mu sync.Mutex
	// done is closed after the attempt that is under way or comes next; last is
	// when the latest began.
	done chan struct{}
	last time.Time
	// busy is set while an attempt is asked for or under way.
	busy bool
}

func (fd *feed) begin() {
	fd.mu.Lock()
	defer fd.mu.Unlock()
	fd.busy, fd.last = true, time.Now()
	select {
	case <-fd.ask: // this attempt answers it
	default:
	}
}

func (fd *feed) end() {
	fd.mu.Lock()
	defer fd.mu.Unlock()
	fd.busy = false
	close(fd.done)
	fd.done = make(chan struct{})
}

// Watch sets the places that are fetched: new ones begin at once, others end.
func (f *Fetcher) Watch(uris []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	want := make(map[string]bool, len(uris))
	for _, uri := range uris {
		want[uri] = true
		if f.feeds[uri] != nil || f.ctx.Err() != nil {
			continue
		}
		ctx, stop := context.WithCancel(f.ctx)
		fd := &feed{ask: make(chan struct{}, 1), done: make(chan struct{}), stop: stop}
		if f.store != nil {
			if b := f.store.LoadKeys(uri); b != nil {
				if set, err := jwks.Parse(b); err == nil {
					fd.keys.Store(set)
				}
			}
		}
		f.feeds[uri] = fd
		f.wait.Go(func() { f.follow(ctx, uri, fd) })
	}
	for uri, fd := range f.feeds {
		if !want[uri] {
			fd.stop()
			delete(f.feeds, uri)
		}
	}
}

// Keys gives the last good key set of a place, nil if there was none yet.
func (f *Fetcher) Keys(uri string) *jwks.Set {
	if fd := f.feed(uri); fd != nil {
		return fd.keys.Load()
	}
	return nil
}

// Refresh asks for a new fetch, because a token names a key that is not known,
// and waits for its end or ctx's. It does nothing if the last fetch began less
// than a second ago and is over; it says whether a fetch ended while it waited.
func (f *Fetcher) Refresh(ctx context.Context, uri string, now time.Time) bool {
	fd := f.feed(uri)
	if fd == nil {
		return false
	}
	fd.mu.Lock()
	if !fd.busy {
		if now.Sub(fd.last) < minInterval {
			fd.mu.Unlock()
			return false
		}
		fd.busy, fd.last = true, now
		select {
		case fd.ask <- struct{}{}:
		default:
		}
	}
	done := fd.done
	fd.mu.Unlock()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *Fetcher) feed(uri string) *feed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.feeds[uri]
}

// follow is the loop of one place.
func (f *Fetcher) follow(ctx context.Context, uri string, fd *feed) {
	backoff := minBackoff
	for {
		fd.begin()
		err := f.fetch(ctx, uri, fd)
		if ctx.Err() != nil {
			return
		}
		fd.end()
		if f.fetched != nil {
			f.fetched(uri, err)
		}
		pause := refreshEvery
		if err != nil {
			f.log.WarnContext(ctx, "keys of a token issuer were not fetched; the last good ones stay",
				slog.String("uri", uri), slog.Any("error", err), slog.Duration("retry_in", backoff))
			pause = backoff
			backoff = min(2*backoff, maxBackoff)
		} else {
			backoff = minBackoff
		}
		t := time.NewTimer(pause*3/4 + rand.N(pause/2))
		select {
		case <-ctx.Done():
		case <-fd.ask:
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (f *Fetcher) fetch(ctx context.Context, uri string, fd *feed) error {
	b, err := f.get(ctx, uri)
	if err != nil {
		return err
	}
	if strings.HasSuffix(uri, discoveryPath) {
		var doc struct {
			JWKSURI string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(b, &doc); err != nil || doc.JWKSURI == "" {
			return errors.New("the discovery document has no jwks_uri")
		}
		if strings.HasPrefix(uri, "https://") && !strings.HasPrefix(doc.JWKSURI, "https://") {
			return errors.New("the discovery document's jwks_uri is not https")
		}
		if b, err = f.get(ctx, doc.JWKSURI); err != nil {
			return err
		}
	}
	set, err := jwks.Parse(b)
	if err != nil {
		return err
	}
	fd.keys.Store(set)
	if f.store != nil {
		if err := f.store.SaveKeys(uri, b); err != nil {
			f.log.WarnContext(ctx, "keys of a token issuer were not saved", slog.String("uri", uri), slog.Any("error", err))
		}
	}
	return nil
}

func (f *Fetcher) get(ctx context.Context, uri string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", uri, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, jwks.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	if len(b) > jwks.MaxSize {
		return nil, fmt.Errorf("%s: more than %d bytes", uri, jwks.MaxSize)
	}
	return b, nil
}

// DiscoveryURI is where an issuer that names no key set describes itself.
func DiscoveryURI(issuer string) string { return strings.TrimSuffix(issuer, "/") + discoveryPath }
