package quota

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
)

// noValue is what Envoys send for a dimension that a request does not have.
const noValue = "-"

// Name is how operators call the counter that has this key: the limit, and behind "?"
// the values of its dimensions as the key has them.
func (l *Limit) Name(key string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(key, l.prefix), "&")
	name := l.Policy + "/" + strconv.Itoa(l.Index)
	if rest == "" {
		return name
	}
	return name + "?" + rest
}

// NameOf is the same, of a key alone: whose limit it is need not be known. ok is false
// for what is no key of a quota.
func NameOf(key string) (name string, ok bool) {
	rest, ours := strings.CutPrefix(key, keyBegins)
	policy, rest, tagged := strings.Cut(rest, "}:")
	index, rest, indexed := strings.Cut(rest, ":")
	if !ours || !tagged || !indexed {
		return "", false
	}
	name = policy + "/" + index
	// What is left begins with how the limit counts, which no name has.
	at := strings.IndexAny(rest, "&#")
	if at < 0 {
		return name, true
	}
	return name + "?" + strings.TrimPrefix(rest[at:], "&"), true
}

// Find is the way back: the limit of a counter's name, its key and the caller's numbers.
// Whoever has a key that is a hash is unknown to tables of plans.
func (t *Table) Find(name string) (*Limit, Match, error) {
	id, rest, _ := strings.Cut(name, "?")
	slash := strings.LastIndexByte(id, '/')
	if slash < 0 {
		return nil, Match{}, errors.New("a counter is called <namespace>/<policy>/<index>?<dimension>=<value>, with & and so on for each dimension")
	}
	limits, known := t.limits[id[:slash]]
	if !known {
		return nil, Match{}, fmt.Errorf("there is no QuotaPolicy %s", id[:slash])
	}
	index, err := strconv.ParseUint(id[slash+1:], 10, 16)
	if err != nil || index >= uint64(len(limits)) {
		return nil, Match{}, fmt.Errorf("QuotaPolicy %s has no limit %s, it has %d", id[:slash], id[slash+1:], len(limits))
	}
	l := limits[index]
	if strings.HasPrefix(rest, "#") { // the hash of a long key
		return l, Match{Key: l.prefix + rest, Numbers: l.numbers(nil)}, nil
	}
	entries, err := Entries(rest)
	if err != nil {
		return nil, Match{}, err
	}
	if err := l.check(entries); err != nil {
		return nil, Match{}, err
	}
	return l, Match{Key: l.key(entries), Numbers: l.numbers(entries), Shared: l.shared(entries)}, nil
}

// check says whether these are the dimensions of the limit, in their order.
func (l *Limit) check(entries []*commonv3.RateLimitDescriptor_Entry) error {
	same := len(entries) == len(l.per)
	for i := 0; same && i < len(entries); i++ {
		same = entries[i].GetKey() == l.per[i]
	}
	if same {
		return nil
	}
	if len(l.per) == 0 {
		return fmt.Errorf("%s counts everybody together: leave out what is behind the ?", l.ID)
	}
	return fmt.Errorf("%s needs ?%s=... with a value for each of its dimensions", l.ID, strings.Join(l.per, "=...&"))
}

// Entries reads "<key>=<value>&...", with "%", "&" and "=" in them written as "%25",
// "%26" and "%3d".
func Entries(text string) ([]*commonv3.RateLimitDescriptor_Entry, error) {
	if text == "" {
		return nil, nil
	}
	var out []*commonv3.RateLimitDescriptor_Entry
	for _, pair := range strings.Split(text, "&") {
		k, v, both := strings.Cut(pair, "=")
		key, err := url.PathUnescape(k)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", k, err)
		}
		value, err := url.PathUnescape(v)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", v, err)
		}
		if !both || key == "" {
			return nil, fmt.Errorf("%q: want <key>=<value>", pair)
		}
		out = append(out, &commonv3.RateLimitDescriptor_Entry{Key: key, Value: value})
	}
	return out, nil
}

// WriteEntries writes what Entries reads.
func WriteEntries(entries []*commonv3.RateLimitDescriptor_Entry) string {
	var b strings.Builder
	for i, e := range entries {
		if i > 0 {
			b.WriteByte('&')
		}
		escape(&b, e.GetKey())
		b.WriteByte('=')
		escape(&b, e.GetValue())
	}
	return b.String()
}

// Masked is a counter's name in which the values of request headers, which may be
// keys or passwords, are replaced by the beginning of their hash.
func Masked(name string) string {
	id, rest, found := strings.Cut(name, "?")
	if !found {
		return name
	}
	pairs := strings.Split(rest, "&")
	for i, pair := range pairs {
		if k, v, both := strings.Cut(pair, "="); both && strings.HasPrefix(k, "request.headers[") && v != noValue {
			pairs[i] = k + "=" + hashOf(v)
		}
	}
	return id + "?" + strings.Join(pairs, "&")
}

// hashOf begins a value's hash, enough to tell two apart.
func hashOf(value string) string {
	sum := sha256.Sum256([]byte(value))
	return "#" + hex.EncodeToString(sum[:4])
}
