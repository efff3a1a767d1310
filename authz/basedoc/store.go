package basedoc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/storage"
)

// Store is a storage.Store whose reads give values of Rego. As with OPA's own store,
// there is one writer at a time, and no commit while a reader's transaction is open.
type Store struct {
	writing sync.Mutex
	reading sync.RWMutex
	last    atomic.Uint64

	version
	triggers map[*trigger]storage.TriggerConfig
	around   func(o *opabundle.ActivateOpts, activate func() error) error
}

// version is what a store holds at a moment. It is immutable.
type version struct {
	root     value
	policies map[string][]byte
}

// New makes an empty store.
func New() *Store {
	return &Store{version: version{root: value{object: &object{}}}, triggers: make(map[*trigger]storage.TriggerConfig)}
}

// Frozen gives a store that stays what the transaction sees.
func (s *Store) Frozen(txn storage.Transaction) (*Store, error) {
	t, err := s.own(txn)
	if err != nil {
		return nil, err
	}
	out := New()
	out.version = t.version
	return out, nil
}

// Around makes f do what has to be done around each activation of bundles by OPA's
// plugins, which f calls. It may change what o has. It is for once, before there is any.
func (s *Store) Around(f func(o *opabundle.ActivateOpts, activate func() error) error) { s.around = f }

// Fill makes data all that is in the store; the zero Data is nothing.
func (s *Store) Fill(data Data) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.reading.Lock()
	defer s.reading.Unlock()
	s.root = data.root
	if s.root.isNothing() {
		s.root = value{object: &object{}}
	}
}

// Warm makes what is at a path a value of Rego, and keeps it as long as the document,
// so that no evaluation has to. It does nothing where it is small, or not there.
func (s *Store) Warm(path storage.Path) {
	s.reading.RLock()
	v := s.root.find(path)
	s.reading.RUnlock()
	switch {
	case v.isNothing():
	case v.object != nil:
		v.ast()
	case v.size() >= keptFrom && v.doc.made.get(v.at) == nil:
		v.doc.large(v.at)
	}
}

// transaction is a version, and of a writer the one that it makes.
type transaction struct {
	id    uint64
	store *Store
	write bool
	stale bool
	version
	context *storage.Context
	event   storage.TriggerEvent
	// staged are data of bundles that were read already, by what stands for them.
	staged map[*byte]*document
	// keeps hides the modules from OPA, which would delete them.
	keeps bool
}

// ID implements storage.Transaction.
func (t *transaction) ID() uint64 { return t.id }

// NewTransaction implements storage.Store.
func (s *Store) NewTransaction(_ context.Context, params ...storage.TransactionParams) (storage.Transaction, error) {
	t := &transaction{store: s}
	if len(params) > 0 {
		t.write, t.context = params[0].Write, params[0].Context
	}
	if t.write {
		s.writing.Lock()
		t.policies = maps.Clone(s.policies)
	} else {
		s.reading.RLock()
		t.policies = s.policies
	}
	t.root, t.id = s.root, s.last.Add(1)
	return t, nil
}

// own gives the transaction if it is one of this store and open.
func (s *Store) own(txn storage.Transaction) (*transaction, error) {
	t, ok := txn.(*transaction)
	if !ok || t.store != s || t.stale {
		return nil, &storage.Error{Code: storage.InvalidTransactionErr, Message: "the transaction is another store's, or over"}
	}
	return t, nil
}

func (s *Store) writer(txn storage.Transaction) (*transaction, error) {
	t, err := s.own(txn)
	if err == nil && !t.write {
		err = &storage.Error{Code: storage.InvalidTransactionErr, Message: "write during read transaction"}
	}
	return t, err
}

// Commit implements storage.Store.
func (s *Store) Commit(ctx context.Context, txn storage.Transaction) error {
	t, err := s.own(txn)
	if err != nil {
		return err
	}
	if !t.write {
		t.stale = true
		s.reading.RUnlock()
		return nil
	}
	s.reading.Lock()
	s.version = t.version
	t.event.Context = t.context
	for _, c := range s.triggers {
		c.OnCommit(ctx, txn, t.event)
	}
	t.stale = true // the triggers may use it
	s.reading.Unlock()
	s.writing.Unlock()
	return nil
}

// Abort implements storage.Store.
func (s *Store) Abort(_ context.Context, txn storage.Transaction) {
	t, err := s.own(txn)
	if err != nil {
		return
	}
	t.stale = true
	if t.write {
		s.writing.Unlock()
	} else {
		s.reading.RUnlock()
	}
}

// Read implements storage.Store. It gives an ast.Value.
func (s *Store) Read(_ context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	t, err := s.own(txn)
	if err != nil {
		return nil, err
	}
	v := t.root.find(path)
	if v.isNothing() {
		return nil, errNotFound
	}
	return v.ast(), nil
}

// Write implements storage.Store. value is a value of Go, or of Rego.
func (s *Store) Write(_ context.Context, txn storage.Transaction, op storage.PatchOp, path storage.Path, value any) error {
	t, err := s.writer(txn)
	if err != nil {
		return err
	}
	v, err := valueOf(value)
	if err != nil {
		return err
	}
	return t.set(op, path, v)
}

func (t *transaction) set(op storage.PatchOp, path storage.Path, v value) error {
	root, err := t.root.write(op, path, v)
	if err != nil {
		return err
	}
	t.root = root
	t.event.Data = append(t.event.Data, storage.DataEvent{Path: slices.Clone(path), Removed: op == storage.RemoveOp})
	return nil
}

func valueOf(x any) (value, error) {
	if v, ok := x.(ast.Value); ok {
		var err error
		if x, err = ast.JSON(v); err != nil {
			return value{}, err
		}
	}
	d, err := fromGo(x)
	if err != nil {
		return value{}, err
	}
	return value{doc: d}, nil
}

// MakeDir implements storage.MakeDirer: it makes empty objects on a path.
func (s *Store) MakeDir(_ context.Context, txn storage.Transaction, path storage.Path) error {
	t, err := s.writer(txn)
	if err != nil {
		return err
	}
	for i := range path {
		switch v := t.root.find(path[:i+1]); {
		case v.isObject():
		case !v.isNothing():
			return &storage.Error{Code: storage.WriteConflictErr, Message: path[:i+1].String()}
		default:
			if err := t.set(storage.AddOp, path[:i+1], value{object: &object{}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// NonEmpty implements storage.NonEmptyer: there is something at the path, or what is no
// object on the way to it.
func (s *Store) NonEmpty(_ context.Context, txn storage.Transaction) func([]string) (bool, error) {
	return func(path []string) (bool, error) {
		t, err := s.own(txn)
		if err != nil {
			return false, err
		}
		if !t.root.find(path).isNothing() {
			return true, nil
		}
		for i := len(path) - 1; i > 0; i-- {
			if v := t.root.find(path[:i]); !v.isNothing() {
				return !v.isObject(), nil
			}
		}
		return false, nil
	}
}

// Truncate implements storage.Store: it takes the files of a bundle.
func (s *Store) Truncate(ctx context.Context, txn storage.Transaction, params storage.TransactionParams, files storage.Iterator) error {
	t, err := s.writer(txn)
	if err != nil {
		return err
	}
	data := Data{root: value{object: &object{}}}
	for {
		file, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if file.IsPolicy {
			t.upsert(file.Path.PolicyID(), file.Value)
			continue
		}
		doc, err := t.read(file.Value)
		if err == nil {
			err = data.add(file.Path, doc)
		}
		if err != nil {
			return fmt.Errorf("data at %s: %w", file.Path, err)
		}
	}
	return s.place(ctx, t, params, data)
}

func (t *transaction) read(text []byte) (*document, error) {
	if len(text) > 0 && t.staged[&text[0]] != nil {
		return t.staged[&text[0]], nil
	}
	return parse(text)
}

// place writes what data has below the roots of a bundle.
func (s *Store) place(ctx context.Context, t *transaction, params storage.TransactionParams, data Data) error {
	if params.RootOverwrite {
		return t.set(storage.AddOp, storage.RootPath, data.root)
	}
	for _, root := range params.BasePaths {
		path, ok := storage.ParsePathEscaped("/" + root)
		if !ok {
			return fmt.Errorf("the path of a root is invalid: %q", root)
		}
		v := data.root.find(path)
		if v.isNothing() {
			continue
		}
		if len(path) > 0 {
			if err := s.MakeDir(ctx, t, path[:len(path)-1]); err != nil {
				return err
			}
		}
		if err := t.set(storage.AddOp, path, v); err != nil {
			return err
		}
	}
	return nil
}

// KeepPolicies calls f, in which OPA activates a bundle that came without its modules,
// and finds none that it would delete or compile: they stay.
func (s *Store) KeepPolicies(txn storage.Transaction, f func() error) error {
	t, err := s.writer(txn)
	if err != nil {
		return err
	}
	t.keeps = true
	defer func() { t.keeps = false }()
	return f()
}

// ListPolicies implements storage.Policy.
func (s *Store) ListPolicies(_ context.Context, txn storage.Transaction) ([]string, error) {
	t, err := s.own(txn)
	if err != nil {
		return nil, err
	}
	if t.keeps {
		return nil, nil
	}
	return slices.Collect(maps.Keys(t.policies)), nil
}

// GetPolicy implements storage.Policy.
func (s *Store) GetPolicy(_ context.Context, txn storage.Transaction, id string) ([]byte, error) {
	t, err := s.own(txn)
	if err != nil {
		return nil, err
	}
	b, ok := t.policies[id]
	if !ok {
		return nil, &storage.Error{Code: storage.NotFoundErr, Message: fmt.Sprintf("policy id %q", id)}
	}
	return b, nil
}

// UpsertPolicy implements storage.Policy.
func (s *Store) UpsertPolicy(_ context.Context, txn storage.Transaction, id string, text []byte) error {
	t, err := s.writer(txn)
	if err == nil {
		t.upsert(id, text)
	}
	return err
}

func (t *transaction) upsert(id string, text []byte) {
	if t.policies == nil {
		t.policies = make(map[string][]byte)
	}
	t.policies[id] = text
	t.event.Policy = append(t.event.Policy, storage.PolicyEvent{ID: id, Data: text})
}

// DeletePolicy implements storage.Policy.
func (s *Store) DeletePolicy(ctx context.Context, txn storage.Transaction, id string) error {
	if _, err := s.GetPolicy(ctx, txn, id); err != nil {
		return err
	}
	t, err := s.writer(txn)
	if err == nil {
		delete(t.policies, id)
		t.event.Policy = append(t.event.Policy, storage.PolicyEvent{ID: id, Removed: true})
	}
	return err
}

// trigger is who is told of commits.
type trigger struct{ store *Store }

// Register implements storage.Trigger. What is told of data is where it changed, not to
// what.
func (s *Store) Register(_ context.Context, txn storage.Transaction, c storage.TriggerConfig) (storage.TriggerHandle, error) {
	if _, err := s.writer(txn); err != nil {
		return nil, err
	}
	h := &trigger{s}
	s.triggers[h] = c
	return h, nil
}

// Unregister implements storage.TriggerHandle.
func (h *trigger) Unregister(_ context.Context, txn storage.Transaction) {
	if _, err := h.store.writer(txn); err == nil {
		delete(h.store.triggers, h)
	}
}
