package pilot

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/tokens"
)

const (
	// tokensFile in the state directory has which tokens are revoked.
	tokensFile = "tokens.log"
	// maxTold bounds the revoked tokens that proxies are told; with more they ask authz.
	// Each is about 60 bytes in every virtual host where tokens are verified.
	maxTold = 1000
	// maxToldIssued bounds those by issuer or by when they were issued: each is tried
	// for every token, where the others take one look into a map.
	maxToldIssued = 32
	// toldAgain is by what proxies are told again after they asked authz, so that
	// they do not go to and fro.
	toldAgain = maxTold * 4 / 5
	// tokensExpire is how often it is looked what has expired.
	tokensExpire = time.Minute
)

// openTokens reads which tokens are revoked. A file that is damaged is an error:
// proxies go on with what they were told, which a start without it would take back.
func (p *Pilot) openTokens(state string, now time.Time) error {
	p.tokensChanged = make(chan struct{}, 1)
	p.tokensFeed = &tokenFeed{}
	if state == "" {
		return nil
	}
	list, err := tokens.Open(filepath.Join(state, tokensFile), now)
	if err != nil {
		return err
	}
	p.tokensFeed.list = list
	if p.tokens, err = toldOf(list, false); err != nil {
		return err
	}
	p.metrics.revokedTokens.Set(float64(list.Table.Len()))
	return nil
}

// toldOf is what proxies are told, nil for nothing; remote says that they are asking
// authz now.
func toldOf(list *tokens.List, remote bool) (*model.RevokedTokens, error) {
	most := maxTold
	if remote {
		most = toldAgain
	}
	switch n := list.Table.Len(); {
	case n == 0:
		return nil, nil
	case n > most:
		return &model.RevokedTokens{Remote: true}, nil
	}
	out := &model.RevokedTokens{IDs: map[string][]string{}, Subjects: map[string][]string{}}
	err := list.Each(func(r tokens.Revocation) error {
		switch {
		case r.ID != "":
			out.IDs[r.Issuer] = append(out.IDs[r.Issuer], r.ID)
		case r.Subject != "" && r.IssuedBefore.IsZero():
			out.Subjects[r.Issuer] = append(out.Subjects[r.Issuer], r.Subject)
		default:
			out.Issued = append(out.Issued, model.RevokedIssue{Issuer: r.Issuer, Subject: r.Subject, Before: r.IssuedBefore})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(out.Issued) > maxToldIssued {
		return &model.RevokedTokens{Remote: true}, nil
	}
	for _, lists := range []map[string][]string{out.IDs, out.Subjects} {
		for _, l := range lists {
			slices.Sort(l) // the same list is the same configuration
		}
	}
	return out, nil
}

// followTokens makes what is revoked part of the configuration until ctx ends. Changes
// that come while one is being translated are taken together.
func (p *Pilot) followTokens(ctx context.Context) error {
	list := p.tokensFeed.list
	if list == nil {
		<-ctx.Done()
		return nil
	}
	for {
		var tick <-chan time.Time
		if list.Table.Len() > 0 {
			tick = time.After(tokensExpire)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.tokensChanged:
			p.tellTokens(ctx, list)
		case now := <-tick:
			if list.Table.Expire(now) > 0 {
				p.tellTokens(ctx, list)
			}
		}
	}
}

func (p *Pilot) tellTokens(ctx context.Context, list *tokens.List) {
	p.metrics.revokedTokens.Set(float64(list.Table.Len()))
	p.mu.Lock()
	defer p.mu.Unlock()
	told, err := toldOf(list, p.tokens != nil && p.tokens.Remote)
	if err != nil {
		// What cannot be told can be asked for: authz has the table.
		p.log.ErrorContext(ctx, "the list of revoked tokens cannot be read; proxies ask authz", slog.Any("error", err))
		told = &model.RevokedTokens{Remote: true}
	}
	if p.takeUp(func() { p.tokens = told }) {
		p.notify()
	}
}
