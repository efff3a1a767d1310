package meshdir

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// decodeMessage sets the fields of m from a YAML mapping: the JSON form of
// protocol buffers as Istio's resource definitions take it (field names in
// lowerCamelCase or as in the .proto file, enums by name, numbers as numbers,
// durations as in Go). What is not in the mapping keeps its value in m.
func (r *report) decodeMessage(n *yaml.Node, m protoreflect.Message, at string) {
	if n.Kind != yaml.MappingNode {
		r.at(n, at, "want a mapping, got %s", describe(n))
		return
	}
	fields := m.Descriptor().Fields()
	oneofs := map[protoreflect.Name]string{}
	seen := map[protoreflect.Name]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		fd := fieldByName(fields, key.Value)
		if fd == nil {
			r.at(key, join(at, key.Value), "unknown field %q%s", key.Value, didYouMean(key.Value, fieldNames(fields)))
			continue
		}
		if first, ok := seen[fd.Name()]; ok {
			r.at(key, join(at, key.Value), "the same field as %q: remove one", first)
			continue
		}
		seen[fd.Name()] = key.Value
		if isNull(value) {
			continue
		}
		if one := fd.ContainingOneof(); one != nil && !one.IsSynthetic() {
			if other, ok := oneofs[one.Name()]; ok {
				r.at(key, join(at, key.Value), "only one of %s and %s may be given", other, key.Value)
				continue
			}
			oneofs[one.Name()] = key.Value
		}
		r.limited(value, fd.FullName(), join(at, fd.JSONName()))
		r.decodeField(value, m, fd, join(at, fd.JSONName()))
	}
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func fieldByName(fields protoreflect.FieldDescriptors, name string) protoreflect.FieldDescriptor {
	if fd := fields.ByJSONName(name); fd != nil {
		return fd
	}
	return fields.ByTextName(name)
}

func fieldNames(fields protoreflect.FieldDescriptors) []string {
	out := make([]string, 0, fields.Len())
	for i := range fields.Len() {
		out = append(out, fields.Get(i).JSONName())
	}
	return out
}

func (r *report) decodeField(n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor, at string) {
	switch {
	case fd.IsMap():
		r.decodeMap(n, m, fd, at)
	case fd.IsList():
		r.decodeList(n, m, fd, at)
	default:
		if v, ok := r.decodeValue(n, fd, m.NewField(fd), at); ok {
			m.Set(fd, v)
		}
	}
}

func (r *report) decodeList(n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor, at string) {
	if n.Kind != yaml.SequenceNode {
		r.at(n, at, "want a list, got %s: put \"- \" before it", describe(n))
		return
	}
	list := m.NewField(fd).List()
	for i, c := range n.Content {
		if isNull(c) {
			r.at(c, index(at, i), "the list has an empty element: remove it, or write {} where an empty one is meant")
			continue
		}
		if v, ok := r.decodeValue(c, fd, list.NewElement(), index(at, i)); ok {
			list.Append(v)
		}
	}
	m.Set(fd, protoreflect.ValueOfList(list))
}

func (r *report) decodeMap(n *yaml.Node, m protoreflect.Message, fd protoreflect.FieldDescriptor, at string) {
	if n.Kind != yaml.MappingNode {
		r.at(n, at, "want a mapping, got %s", describe(n))
		return
	}
	values := m.NewField(fd).Map()
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		place := at + "[" + key.Value + "]"
		k, ok := r.decodeMapKey(key, fd.MapKey(), place)
		if !ok {
			continue
		}
		if values.Has(k) {
			r.at(key, place, "key %s is given twice: remove one", key.Value)
			continue
		}
		if isNull(value) {
			r.at(value, place, "has no value")
			continue
		}
		if v, ok := r.decodeValue(value, fd.MapValue(), values.NewValue(), place); ok {
			values.Set(k, v)
		}
	}
	m.Set(fd, protoreflect.ValueOfMap(values))
}

func (r *report) decodeMapKey(n *yaml.Node, fd protoreflect.FieldDescriptor, at string) (protoreflect.MapKey, bool) {
	if fd.Kind() == protoreflect.StringKind {
		return protoreflect.ValueOfString(n.Value).MapKey(), true
	}
	u, err := strconv.ParseUint(n.Value, 10, 32)
	if err != nil || fd.Kind() != protoreflect.Uint32Kind {
		r.at(n, at, "the key must be a number, got %q", n.Value)
		return protoreflect.MapKey{}, false
	}
	return protoreflect.ValueOfUint32(uint32(u)).MapKey(), true
}

// decodeValue gives a single value; fresh is an empty one of the right type.
func (r *report) decodeValue(n *yaml.Node, fd protoreflect.FieldDescriptor, fresh protoreflect.Value, at string) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		r.decodeMessageValue(n, fresh.Message(), at)
		return fresh, true
	case protoreflect.EnumKind:
		return r.decodeEnum(n, fd.Enum(), at)
	default:
		return r.decodeScalar(n, fd.Kind(), at)
	}
}

func (r *report) decodeMessageValue(n *yaml.Node, m protoreflect.Message, at string) {
	switch name := m.Descriptor().FullName(); {
	case name == "google.protobuf.Duration":
		r.decodeDuration(n, m, at)
	case name.Parent() == "google.protobuf" && strings.HasSuffix(string(name), "Value") && name.Name() != "Value" && name.Name() != "ListValue":
		fd := m.Descriptor().Fields().ByNumber(1)
		if v, ok := r.decodeScalar(n, fd.Kind(), at); ok {
			m.Set(fd, v)
		}
	case name.Parent() == "google.protobuf":
		if err := protojson.Unmarshal(toJSON(n), m.Interface()); err != nil {
			r.at(n, at, "%s does not fit: %v", describe(n), err)
		}
	default:
		r.decodeMessage(n, m, at)
	}
}

// decodeDuration takes what Istio takes: Go's form ("1h30m", "5s").
func (r *report) decodeDuration(n *yaml.Node, m protoreflect.Message, at string) {
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!int" || n.ShortTag() == "!!float") {
		r.at(n, at, "want a duration, got %s: give it a unit, such as %ss", describe(n), n.Value)
		return
	}
	text, ok := r.text(n, at, "a duration such as 5s")
	if !ok {
		return
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		r.at(n, at, "%q is not a duration: write for example 500ms, 5s or 1h30m", shorten(text))
		return
	}
	p := durationpb.New(d)
	fields := m.Descriptor().Fields()
	m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(p.Seconds))
	m.Set(fields.ByName("nanos"), protoreflect.ValueOfInt32(p.Nanos))
}

func (r *report) decodeEnum(n *yaml.Node, e protoreflect.EnumDescriptor, at string) (protoreflect.Value, bool) {
	var names []string
	for i := range e.Values().Len() {
		names = append(names, string(e.Values().Get(i).Name()))
	}
	if n.Kind != yaml.ScalarNode {
		r.at(n, at, "want one of %s, got %s", strings.Join(names, ", "), describe(n))
		return protoreflect.Value{}, false
	}
	v := e.Values().ByName(protoreflect.Name(n.Value))
	if v == nil {
		r.at(n, at, "unknown value %q%s", shorten(n.Value), didYouMean(n.Value, names))
		return protoreflect.Value{}, false
	}
	return protoreflect.ValueOfEnum(v.Number()), true
}

func (r *report) decodeScalar(n *yaml.Node, kind protoreflect.Kind, at string) (v protoreflect.Value, ok bool) {
	switch kind {
	case protoreflect.StringKind:
		s, ok := r.text(n, at, "a text")
		return protoreflect.ValueOfString(s), ok
	case protoreflect.BoolKind:
		b, ok := r.boolean(n, at)
		return protoreflect.ValueOfBool(b), ok
	case protoreflect.BytesKind:
		b, ok := r.bytes(n, at)
		return protoreflect.ValueOfBytes(b), ok
	case protoreflect.DoubleKind:
		f, ok := r.float(n, at)
		return protoreflect.ValueOfFloat64(f), ok
	case protoreflect.FloatKind:
		f, ok := r.float(n, at)
		return protoreflect.ValueOfFloat32(float32(f)), ok
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		i, ok := r.integer(n, at, math.MinInt32, math.MaxInt32)
		return protoreflect.ValueOfInt32(int32(i)), ok
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		i, ok := r.integer(n, at, 0, math.MaxUint32)
		return protoreflect.ValueOfUint32(uint32(i)), ok
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		i, ok := r.integer(unquoted(n), at, math.MinInt64, math.MaxInt64)
		return protoreflect.ValueOfInt64(i), ok
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		i, ok := r.integer(unquoted(n), at, 0, math.MaxInt64)
		return protoreflect.ValueOfUint64(uint64(i)), ok
	}
	r.at(n, at, "a field of type %s cannot be read", kind)
	return v, false
}

// text takes a string: a number or a boolean without quotes is a mistake that
// Kubernetes refuses too.
func (r *report) text(n *yaml.Node, at, want string) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		r.at(n, at, "want %s, got %s", want, describe(n))
		return "", false
	}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return n.Value, true
	case "!!null":
		return "", true
	}
	r.at(n, at, "want %s, got %s: put it in quotes", want, describe(n))
	return "", false
}

func (r *report) boolean(n *yaml.Node, at string) (bool, bool) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool" {
		var b bool
		if n.Decode(&b) == nil {
			return b, true
		}
	}
	hint := ""
	if n.Kind == yaml.ScalarNode && slices.Contains([]string{"yes", "no", "on", "off", "true", "false"}, strings.ToLower(n.Value)) {
		hint = ": write true or false without quotes"
	}
	r.at(n, at, "want true or false, got %s%s", describe(n), hint)
	return false, false
}

func (r *report) integer(n *yaml.Node, at string, least, most int64) (int64, bool) {
	var i int64
	if r.quoted {
		n = unquoted(n)
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || n.Decode(&i) != nil {
		hint := ""
		if _, err := strconv.ParseInt(n.Value, 10, 64); err == nil {
			hint = ": remove the quotes"
		}
		r.at(n, at, "want a whole number, got %s%s", describe(n), hint)
		return 0, false
	}
	if i < least || i > most {
		r.at(n, at, "%d is out of range: it must be from %d to %d", i, least, most)
		return 0, false
	}
	return i, true
}

// unquoted lets a 64-bit number be a text of digits, which is how the JSON form
// of protocol buffers writes them.
func unquoted(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return n
	}
	plain := *n
	plain.Tag, plain.Style = "", 0
	return &plain
}

func (r *report) float(n *yaml.Node, at string) (float64, bool) {
	var f float64
	if n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!float" || n.ShortTag() == "!!int") && n.Decode(&f) == nil &&
		!math.IsNaN(f) && !math.IsInf(f, 0) {
		return f, true
	}
	r.at(n, at, "want a number, got %s", describe(n))
	return 0, false
}

func (r *report) bytes(n *yaml.Node, at string) ([]byte, bool) {
	if n.Kind == yaml.ScalarNode {
		text := strings.Join(strings.Fields(n.Value), "")
		if b, err := base64.StdEncoding.DecodeString(text); err == nil {
			return b, true
		}
	}
	r.at(n, at, "want base64, got %s", describe(n))
	return nil, false
}
