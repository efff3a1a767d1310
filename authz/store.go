package authz

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/atomicfile"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// store keeps the last good configuration and key sets in a folder. Without a
// folder it keeps nothing.
type store struct{ dir string }

const stateFile = "policies.json"

// saved is the form of the state file; the values are protobuf's JSON.
type saved struct {
	Version  int                        `json:"version"`
	Policies map[string]json.RawMessage `json:"rego_policies"`
	Issuers  map[string]json.RawMessage `json:"token_issuers"`
}

func openStore(dir string) (*store, error) {
	if dir == "" {
		return &store{}, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, "jwks"), 0o700); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return &store{dir: dir}, nil
}

func (s *store) save(policies map[string]*configpb.RegoPolicy, issuers map[string]*configpb.TokenIssuer) error {
	if s.dir == "" {
		return nil
	}
	out := saved{Version: 1, Policies: make(map[string]json.RawMessage), Issuers: make(map[string]json.RawMessage)}
	var errs []error
	for name, p := range policies {
		b, err := protojson.Marshal(p)
		out.Policies[name], errs = b, append(errs, err)
	}
	for name, i := range issuers {
		b, err := protojson.Marshal(i)
		out.Issuers[name], errs = b, append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	b, err := json.Marshal(out)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(s.dir, stateFile), b, 0o600)
}

// load gives what was saved last; ok is false if there is nothing. A file that
// cannot be read is put aside, and the error says so.
func (s *store) load() (policies map[string]*configpb.RegoPolicy, issuers map[string]*configpb.TokenIssuer, ok bool, err error) {
	if s.dir == "" {
		return nil, nil, false, nil
	}
	path := filepath.Join(s.dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, fmt.Errorf("state: %w", err)
	}
	policies, issuers, err = decodeState(b)
	if err != nil {
		aside := path + ".corrupt"
		if rerr := os.Rename(path, aside); rerr == nil {
			return nil, nil, false, fmt.Errorf("state %s is corrupt, moved to %s: %w", path, aside, err)
		}
		return nil, nil, false, fmt.Errorf("state %s is corrupt: %w", path, err)
	}
	return policies, issuers, true, nil
}

func decodeState(b []byte) (map[string]*configpb.RegoPolicy, map[string]*configpb.TokenIssuer, error) {
	var in saved
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, nil, err
	}
	if in.Version != 1 {
		return nil, nil, fmt.Errorf("version %d is not known", in.Version)
	}
	policies, err := decodeAll(in.Policies, func() *configpb.RegoPolicy { return new(configpb.RegoPolicy) })
	if err != nil {
		return nil, nil, err
	}
	issuers, err := decodeAll(in.Issuers, func() *configpb.TokenIssuer { return new(configpb.TokenIssuer) })
	return policies, issuers, err
}

func decodeAll[M proto.Message](in map[string]json.RawMessage, make1 func() M) (map[string]M, error) {
	out := make(map[string]M, len(in))
	for name, raw := range in {
		m := make1()
		// What a newer version wrote may have more fields.
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = m
	}
	return out, nil
}

// LoadKeys implements token.Store.
func (s *store) LoadKeys(uri string) []byte {
	if s.dir == "" {
		return nil
	}
	b, err := os.ReadFile(s.keysFile(uri))
	if err != nil {
		return nil
	}
	return b
}

// SaveKeys implements token.Store.
func (s *store) SaveKeys(uri string, jwks []byte) error {
	if s.dir == "" {
		return nil
	}
	return atomicfile.Write(s.keysFile(uri), jwks, 0o600)
}

func (s *store) keysFile(uri string) string {
	sum := sha256.Sum256([]byte(uri))
	return filepath.Join(s.dir, "jwks", hex.EncodeToString(sum[:])+".json")
}
