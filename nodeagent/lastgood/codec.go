package lastgood

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"unique"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Type is what a proxy has acknowledged of one type of resource.
type Type struct {
	// Version is the version of the newest response, as pilot gave it.
	Version string
	// Resources are by name.
	Resources map[string]Resource
}

// Resource is a resource as it was received. Bytes are shared between proxies
// that have the same.
type Resource struct {
	Version string
	body    unique.Handle[string]
	gone    bool
}

// NewResource keeps r.
func NewResource(r *discoveryv3.Resource) (Resource, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return Resource{}, fmt.Errorf("resource %s: %w", r.GetName(), err)
	}
	return Resource{Version: r.GetVersion(), body: unique.Make(string(data))}, nil
}

// Gone stands for a resource that the proxy asked for by name and that pilot said
// does not exist.
func Gone() Resource { return Resource{gone: true} }

// IsGone tells whether r is Gone.
func (r Resource) IsGone() bool { return r.gone }

// Message returns the resource.
func (r Resource) Message() (*discoveryv3.Resource, error) {
	m := new(discoveryv3.Resource)
	if r.gone {
		return nil, errors.New("the resource does not exist")
	}
	if err := proto.Unmarshal([]byte(r.body.Value()), m); err != nil {
		return nil, err
	}
	return m, nil
}

// The file is a protobuf message of these fields; a type is written as a
// DeltaDiscoveryResponse, whose removed_resources are the ones that are gone.
const (
	fieldProxyID = 1
	fieldType    = 2

	typeVersion  = 1
	typeResource = 2
	typeURL      = 4
	typeRemoved  = 6
)

// secretURL is the type that is not written to disk.
const secretURL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// encode returns the payload of a proxy's file. The same content gives the same
// bytes.
func encode(proxyID string, types map[string]Type) []byte {
	out := protowire.AppendTag(nil, fieldProxyID, protowire.BytesType)
	out = protowire.AppendString(out, proxyID)
	for _, url := range slices.Sorted(maps.Keys(types)) {
		if url == secretURL {
			continue
		}
		out = protowire.AppendTag(out, fieldType, protowire.BytesType)
		out = protowire.AppendBytes(out, encodeType(url, types[url]))
	}
	return out
}

func encodeType(url string, t Type) []byte {
	str := func(b []byte, field protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
	}
	var out []byte
	out = str(out, typeVersion, t.Version)
	names := slices.Sorted(maps.Keys(t.Resources))
	for _, name := range names {
		if r := t.Resources[name]; !r.gone {
			out = str(out, typeResource, r.body.Value())
		}
	}
	out = str(out, typeURL, url)
	for _, name := range names {
		if t.Resources[name].gone {
			out = str(out, typeRemoved, name)
		}
	}
	return out
}

// decode reads what encode wrote. It takes nothing of a payload that is not
// entirely right.
func decode(payload []byte) (proxyID string, types map[string]Type, err error) {
	types = make(map[string]Type)
	for len(payload) > 0 {
		num, value, rest, err := field(payload)
		if err != nil {
			return "", nil, err
		}
		payload = rest
		switch num {
		case fieldProxyID:
			proxyID = string(value)
		case fieldType:
			url, t, err := decodeType(value)
			if err != nil {
				return "", nil, err
			}
			if _, ok := types[url]; ok || url == "" {
				return "", nil, fmt.Errorf("type %q: unexpected", url)
			}
			types[url] = t
		default:
			return "", nil, fmt.Errorf("field %d: unexpected", num)
		}
	}
	return proxyID, types, nil
}

func decodeType(data []byte) (string, Type, error) {
	t := Type{Resources: make(map[string]Resource)}
	var url string
	for len(data) > 0 {
		num, value, rest, err := field(data)
		if err != nil {
			return "", t, err
		}
		data = rest
		var name string
		r := Gone()
		switch num {
		case typeVersion:
			t.Version = string(value)
			continue
		case typeURL:
			url = string(value)
			continue
		case typeResource:
			m := new(discoveryv3.Resource)
			if err := proto.Unmarshal(value, m); err != nil {
				return "", t, fmt.Errorf("resource: %w", err)
			}
			name = m.GetName()
			if r, err = NewResource(m); err != nil {
				return "", t, err
			}
		case typeRemoved:
			name = string(value)
		default:
			return "", t, fmt.Errorf("field %d of a type: unexpected", num)
		}
		if _, ok := t.Resources[name]; ok {
			return "", t, fmt.Errorf("resource %q: twice", name)
		}
		t.Resources[name] = r
	}
	return url, t, nil
}

// field takes one length-delimited field off data.
func field(data []byte) (num protowire.Number, value, rest []byte, err error) {
	num, kind, n := protowire.ConsumeTag(data)
	if n < 0 {
		return 0, nil, nil, protowire.ParseError(n)
	}
	if kind != protowire.BytesType {
		return 0, nil, nil, fmt.Errorf("field %d: unexpected wire type %d", num, kind)
	}
	value, m := protowire.ConsumeBytes(data[n:])
	if m < 0 {
		return 0, nil, nil, protowire.ParseError(m)
	}
	return num, value, data[n+m:], nil
}
