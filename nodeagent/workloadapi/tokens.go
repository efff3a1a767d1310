package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/nodeagent/latest"
)

const (
	// tokenTimeout bounds one request to the authority; it is shorter than half of
	// the shortest life of a token (10 s).
	tokenTimeout = 3 * time.Second
	// refreshPatience is how long a caller waits for a new token while there is one
	// that is still good.
	refreshPatience = 500 * time.Millisecond
	// refreshRest is how long a token that is still good is handed out without
	// asking again after the authority gave no new one.
	refreshRest = time.Second
	// maxTokens bounds the tokens that are held for one workload; the one that was
	// used the longest ago goes first.
	maxTokens = 256
	// maxAsking bounds the requests to the authority of one workload that are under
	// way at once.
	maxAsking = 8
	// A workload may ask for askBurst new tokens at once and then for one each
	// askEvery: the authority is everybody's.
	askBurst = maxTokens
	askEvery = 20 * time.Millisecond
	// sweepEvery is how often expired tokens are looked for.
	sweepEvery = time.Minute
)

// TokenIssuer signs JWT-SVIDs.
type TokenIssuer interface {
	// IssueJWT asks for a token for id; errors are gRPC status errors.
	IssueJWT(ctx context.Context, id spiffeid.ID, audiences []string) (string, error)
}

// TokenObserver hears what happens, for metrics. It must not block.
type TokenObserver interface {
	// JWTSVID is called for each token that was handed out: cached, or new from the
	// authority; and with failed for each request to the authority that gave none.
	JWTSVID(result string)
}

// The results that a TokenObserver hears.
const (
	TokenCached = "cached"
	TokenNew    = "new"
	TokenFailed = "failed"
)

// TokensConfig is what NewTokens needs.
type TokensConfig struct {
	Issuer TokenIssuer
	// Keys verify what the authority answers.
	Keys     *latest.Value[Keys]
	Observer TokenObserver
	Log      *slog.Logger
}

// Tokens are the JWT-SVIDs of the workloads that ask. They are in memory only, and
// safe for concurrent use.
type Tokens struct {
	cfg    TokensConfig
	ctx    context.Context //nolint:containedctx // the life of the requests, ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	held    map[caller]*held
	sweepAt time.Time
}

// held is what there is for one workload.
type held struct {
	tokens map[string]*token
	asking map[string]*asking
	slots  chan struct{}
	// next is when the budget of new tokens would be whole again.
	next time.Time
}

// token is a JWT-SVID that was verified with keys.
type token struct {
	compact         string
	renewAt, expiry time.Time
	used            time.Time
	keys            *jwtbundle.Bundle
	// failed is when a request for its successor gave none.
	failed time.Time
}

// asking is one request to the authority, for all who wait for it.
type asking struct {
	done  chan struct{} // closed at the end
	token *token
	err   error
}

// NewTokens returns an empty cache; Close ends its requests.
func NewTokens(cfg TokensConfig) *Tokens {
	ctx, cancel := context.WithCancel(context.Background())
	return &Tokens{cfg: cfg, ctx: ctx, cancel: cancel, held: make(map[caller]*held)}
}

// Close ends the requests to the authority and waits for them.
func (t *Tokens) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
}

// Fetch returns a token of a workload that is valid now. The audiences have been
// checked. Errors are gRPC status errors.
func (t *Tokens) Fetch(ctx context.Context, proxyID string, id spiffeid.ID, audiences []string) (string, error) {
	audiences = slices.Sorted(slices.Values(audiences))
	have, ask, err := t.look(caller{proxyID, id}, audiences)
	switch {
	case err != nil:
		return "", err
	case ask == nil:
		t.cfg.Observer.JWTSVID(TokenCached)
		return have, nil
	}
	var patience <-chan time.Time
	if have != "" {
		timer := time.NewTimer(refreshPatience)
		defer timer.Stop()
		patience = timer.C
	}
	select {
	case <-ask.done:
	case <-patience:
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
	select {
	case <-ask.done:
		if ask.err == nil {
			t.cfg.Observer.JWTSVID(TokenNew)
			return ask.token.compact, nil
		}
		if have == "" || refused(ask.err) {
			return "", ask.err
		}
	default:
	}
	t.cfg.Observer.JWTSVID(TokenCached)
	return have, nil
}

// look returns a token that is valid, if there is one, and unless it is to be
// handed out as it is the request for a new one.
func (t *Tokens) look(who caller, audiences []string) (have string, ask *asking, err error) {
	now := time.Now()
	keys, _ := t.cfg.Keys.Get()
	name := strings.Join(audiences, "\x00")
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	h := t.held[who]
	if h == nil {
		h = &held{tokens: make(map[string]*token), asking: make(map[string]*asking), slots: make(chan struct{}, maxAsking)}
		t.held[who] = h
	}
	tok := h.tokens[name]
	if tok != nil && !tok.good(who.id, audiences, keys, now) {
		delete(h.tokens, name)
		tok = nil
	}
	if tok != nil {
		tok.used = now
		have = tok.compact
		if now.Before(tok.renewAt) || now.Sub(tok.failed) < refreshRest {
			return have, nil, nil
		}
	}
	if ask = h.asking[name]; ask != nil {
		return have, ask, nil
	}
	if t.closed || !h.afford(now) {
		switch {
		case have != "":
			return have, nil, nil
		case t.closed:
			return "", nil, status.Error(codes.Unavailable, "the node agent is stopping")
		}
		return "", nil, status.Errorf(codes.ResourceExhausted, "%s asks for too many different tokens; each set of audiences is one", who.id)
	}
	ask = &asking{done: make(chan struct{})}
	h.asking[name] = ask
	t.wg.Go(func() { t.ask(who, audiences, name, h, ask) })
	return have, ask, nil
}

// afford takes one new token from the budget.
func (h *held) afford(now time.Time) bool {
	if h.next.Before(now) {
		h.next = now
	}
	if h.next.Sub(now) > askBurst*askEvery {
		return false
	}
	h.next = h.next.Add(askEvery)
	return true
}

// good tells whether a token may be handed out: it has not expired, and the key
// that signed it is still among those of the trust domain.
func (tok *token) good(id spiffeid.ID, audiences []string, keys Keys, now time.Time) bool {
	if !now.Before(tok.expiry) {
		return false
	}
	if keys.bundle == nil || keys.bundle == tok.keys {
		return true
	}
	if _, err := verify(tok.compact, id, audiences, keys.bundle); err != nil {
		return false
	}
	tok.keys = keys.bundle
	return true
}

// ask gets a token from the authority and hands it to all who wait.
func (t *Tokens) ask(who caller, audiences []string, name string, h *held, ask *asking) {
	ctx, cancel := context.WithTimeout(t.ctx, tokenTimeout)
	defer cancel()
	ask.token, ask.err = t.obtain(ctx, who.id, audiences, h.slots)
	t.mu.Lock()
	now := time.Now()
	delete(h.asking, name)
	switch old := h.tokens[name]; {
	case ask.err == nil:
		ask.token.used = now
		h.tokens[name] = ask.token
		h.bound()
	case refused(ask.err):
		delete(h.tokens, name)
	case old != nil:
		old.failed = now
	}
	t.mu.Unlock()
	close(ask.done)
	if ask.err != nil && t.ctx.Err() == nil {
		t.cfg.Observer.JWTSVID(TokenFailed)
		t.cfg.Log.WarnContext(ctx, "no token from the authority", slog.String("spiffe_id", who.id.String()), slog.Any("error", ask.err))
	}
}

// refused tells whether the authority does not want the workload to have a token.
func refused(err error) bool { return status.Code(err) == codes.PermissionDenied }

// bound drops the token that was used the longest ago if there are too many.
func (h *held) bound() {
	if len(h.tokens) <= maxTokens {
		return
	}
	oldest := ""
	for name, tok := range h.tokens {
		if oldest == "" || tok.used.Before(h.tokens[oldest].used) {
			oldest = name
		}
	}
	delete(h.tokens, oldest)
}

// sweep drops what has expired, and workloads of which nothing is left. It needs
// t.mu.
func (t *Tokens) sweep(now time.Time) {
	if now.Before(t.sweepAt) {
		return
	}
	t.sweepAt = now.Add(sweepEvery)
	for who, h := range t.held {
		for name, tok := range h.tokens {
			if !now.Before(tok.expiry) {
				delete(h.tokens, name)
			}
		}
		if len(h.tokens) == 0 && len(h.asking) == 0 && !h.next.After(now) {
			delete(t.held, who)
		}
	}
}

// obtain asks the authority and checks what it answers. Errors are gRPC status
// errors.
func (t *Tokens) obtain(ctx context.Context, id spiffeid.ID, audiences []string, slots chan struct{}) (*token, error) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	compact, err := t.cfg.Issuer.IssueJWT(ctx, id, audiences)
	if err != nil {
		if refused(err) {
			return nil, err
		}
		return nil, status.Errorf(codes.Unavailable, "no token from the authority: %v", err)
	}
	// A key may be on its way here while the authority signs with it already.
	for {
		keys, changed := t.cfg.Keys.Get()
		err := errors.New("the keys of the trust domain are not there yet")
		if keys.bundle != nil {
			var tok *token
			if tok, err = verify(compact, id, audiences, keys.bundle); err == nil {
				return tok, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, status.Errorf(codes.Unavailable, "the token of the authority is not used: %v", err)
		}
	}
}

// verify checks that a token is what was asked for.
func verify(compact string, id spiffeid.ID, audiences []string, keys *jwtbundle.Bundle) (*token, error) {
	v, err := jwtsvid.ParseAndValidate(compact, keys, audiences)
	if err != nil {
		return nil, err
	}
	if v.ID != id {
		return nil, fmt.Errorf("it is for %s instead of %s", v.ID, id)
	}
	if got := slices.Sorted(slices.Values(v.Audience)); !slices.Equal(got, audiences) {
		return nil, fmt.Errorf("it is for the audiences %q instead of %q", got, audiences)
	}
	left := time.Until(v.Expiry)
	if left <= 0 {
		return nil, fmt.Errorf("it expired at %s; compare the clocks of this machine and of the authority", v.Expiry.Format(time.RFC3339))
	}
	return &token{compact: compact, renewAt: v.Expiry.Add(-left / 2), expiry: v.Expiry, keys: keys}, nil
}
