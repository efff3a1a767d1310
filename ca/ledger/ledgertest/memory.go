package ledgertest

import (
	"context"
	"slices"
	"sync"

	"github.com/writ-mesh/writ/ca/ledger"
)

// Memory is a store that forgets everything when the process ends, for tests of what
// uses a store.
type Memory struct {
	mu     sync.Mutex
	certs  []ledger.Certificate
	tokens map[string]ledger.Token
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{tokens: make(map[string]ledger.Token)} }

// Record implements Certificates.
func (m *Memory) Record(_ context.Context, c ledger.Certificate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.certs = append(m.certs, c)
	return nil
}

// Each implements Certificates.
func (m *Memory) Each(_ context.Context, f func(ledger.Certificate) error) error {
	m.mu.Lock()
	certs := slices.Clone(m.certs)
	m.mu.Unlock()
	for _, c := range certs {
		if err := f(c); err != nil {
			return err
		}
	}
	return nil
}

// AddToken implements Tokens.
func (m *Memory) AddToken(_ context.Context, t ledger.Token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[t.ID] = t
	return nil
}

// Token implements Tokens.
func (m *Memory) Token(_ context.Context, id string) (ledger.Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tokens[id]
	if !ok {
		return ledger.Token{}, ledger.ErrNoToken
	}
	return t, nil
}

// RecordJoin implements Tokens.
func (m *Memory) RecordJoin(_ context.Context, tokenID string, c ledger.Certificate) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.tokens[tokenID]; !ok {
		return ledger.ErrNoToken
	}
	delete(m.tokens, tokenID)
	m.certs = append(m.certs, c)
	return nil
}

// Check implements Store.
func (*Memory) Check(context.Context) error { return nil }

// Close implements Store.
func (*Memory) Close() error { return nil }
