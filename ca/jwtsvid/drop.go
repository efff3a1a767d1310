package jwtsvid

import (
	"context"
	"errors"
	"slices"
	"time"
)

// maxDropped bounds how many dropped keys are remembered, so that whoever shares the
// set takes them out too.
const maxDropped = 64

// ErrNoKey is returned for a key that is not there.
var ErrNoKey = errors.New("no such key")

// Drop takes a key out at once, because others may have it: it signs nothing any more,
// and its tokens are refused by whoever has the set of after that. If it signs, the
// prepared key does from now on, or a new one.
func (k *Keys) Drop(ctx context.Context, id string, now time.Time) error {
	k.stepping.Lock()
	defer k.stepping.Unlock()
	k.mu.Lock()
	old := k.state
	k.mu.Unlock()
	next, err := k.cfg.drop(old, id, now)
	if err != nil {
		return err
	}
	return k.save(ctx, next)
}

// drop computes what follows a state without a key.
func (c Config) drop(old state, id string, now time.Time) (state, error) {
	at := slices.IndexFunc(old.Keys, func(k key) bool { return k.ID == id })
	if at < 0 {
		return state{}, ErrNoKey
	}
	gone := old.Keys[at]
	next := state{Version: old.Version + 1, Keys: slices.Delete(slices.Clone(old.Keys), at, at+1), Dropped: append(slices.Clone(old.Dropped), id)}
	next.Dropped = next.Dropped[max(0, len(next.Dropped)-maxDropped):]
	if gone.Activated.IsZero() || !gone.Retired.IsZero() {
		return next, nil // another one signs
	}
	heir := slices.IndexFunc(next.Keys, func(k key) bool { return k.Activated.IsZero() })
	if heir < 0 {
		made, err := newKey(now)
		if err != nil {
			return state{}, err
		}
		next.Keys, heir = append(next.Keys, made), len(next.Keys)
	}
	next.Keys[heir].Activated, next.Keys[heir].Longest = now.UTC(), c.MaxTTL
	return next, nil
}
