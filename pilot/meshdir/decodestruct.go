package meshdir

import (
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decodeStruct sets v, a pointer to a struct with json tags, from a YAML
// mapping, as strictly as decodeMessage.
func (r *report) decodeStruct(n *yaml.Node, v any, at string) {
	r.decodeReflect(n, reflect.ValueOf(v).Elem(), at)
}

func (r *report) decodeReflect(n *yaml.Node, v reflect.Value, at string) {
	if isNull(n) {
		return
	}
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		if err := u.UnmarshalJSON(toJSON(n)); err != nil {
			r.at(n, at, "%s does not fit: %v", describe(n), err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		r.decodeReflect(n, p.Elem(), at)
		v.Set(p)
	case reflect.Struct:
		r.decodeFields(n, v, at)
	case reflect.Slice:
		r.decodeSlice(n, v, at)
	case reflect.Map:
		r.decodeGoMap(n, v, at)
	case reflect.Interface:
		var x any
		if json.Unmarshal(toJSON(n), &x) == nil && x != nil {
			v.Set(reflect.ValueOf(x))
		}
	default:
		r.decodeBasic(n, v, at)
	}
}

func (r *report) decodeBasic(n *yaml.Node, v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.String:
		if s, ok := r.text(n, at, "a text"); ok {
			v.SetString(s)
		}
	case reflect.Bool:
		if b, ok := r.boolean(n, at); ok {
			v.SetBool(b)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		bits := v.Type().Bits()
		if i, ok := r.integer(n, at, -1<<(bits-1), math.MaxInt64>>(64-bits)); ok {
			v.SetInt(i)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if i, ok := r.integer(n, at, 0, int64(uint64(math.MaxUint64)>>(64-min(63, v.Type().Bits())))); ok {
			v.SetUint(uint64(i))
		}
	case reflect.Float32, reflect.Float64:
		if f, ok := r.float(n, at); ok {
			v.SetFloat(f)
		}
	default:
		r.at(n, at, "a field of type %s cannot be read", v.Type())
	}
}

func (r *report) decodeFields(n *yaml.Node, v reflect.Value, at string) {
	if n.Kind != yaml.MappingNode {
		r.at(n, at, "want a mapping, got %s", describe(n))
		return
	}
	fields := map[string]reflect.Value{}
	structFields(v, fields)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field, ok := fields[key.Value]
		if !ok {
			names := make([]string, 0, len(fields))
			for name := range fields {
				names = append(names, name)
			}
			r.at(key, join(at, key.Value), "unknown field %q%s", key.Value, didYouMean(key.Value, names))
			continue
		}
		r.decodeReflect(value, field, join(at, key.Value))
	}
}

// structFields lists the fields by their JSON name, those of embedded structs
// included.
func structFields(v reflect.Value, into map[string]reflect.Value) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case !f.IsExported() || name == "-":
		case f.Anonymous && name == "" || strings.Contains(options, "inline"):
			if f.Type.Kind() == reflect.Struct {
				structFields(v.Field(i), into)
			}
		case name == "":
			into[f.Name] = v.Field(i)
		default:
			into[name] = v.Field(i)
		}
	}
}

func (r *report) decodeSlice(n *yaml.Node, v reflect.Value, at string) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		if b, ok := r.bytes(n, at); ok {
			v.SetBytes(b)
		}
		return
	}
	if n.Kind != yaml.SequenceNode {
		r.at(n, at, "want a list, got %s: put \"- \" before it", describe(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		if isNull(c) {
			r.at(c, index(at, i), "the list has an empty element: remove it")
			continue
		}
		r.decodeReflect(c, out.Index(i), index(at, i))
	}
	v.Set(out)
}

func (r *report) decodeGoMap(n *yaml.Node, v reflect.Value, at string) {
	if n.Kind != yaml.MappingNode {
		r.at(n, at, "want a mapping, got %s", describe(n))
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		place := at + "[" + key.Value + "]"
		element := reflect.New(v.Type().Elem()).Elem()
		switch k := reflect.New(v.Type().Key()).Elem(); k.Kind() {
		case reflect.String:
			k.SetString(key.Value)
			r.decodeReflect(value, element, place)
			out.SetMapIndex(k, element)
		default:
			u, err := strconv.ParseUint(key.Value, 10, k.Type().Bits())
			if err != nil {
				r.at(key, place, "the key must be a number, got %q", shorten(key.Value))
				continue
			}
			k.SetUint(u)
			r.decodeReflect(value, element, place)
			out.SetMapIndex(k, element)
		}
	}
	v.Set(out)
}

// toJSON gives a node as JSON, for types that read themselves.
func toJSON(n *yaml.Node) []byte {
	out, err := json.Marshal(toValue(n))
	if err != nil {
		return []byte("null")
	}
	return out
}

func toValue(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = toValue(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			list = append(list, toValue(c))
		}
		return list
	}
	switch n.ShortTag() {
	case "!!int", "!!float", "!!bool", "!!null":
		var v any
		if n.Decode(&v) == nil {
			if f, ok := v.(float64); !ok || !math.IsNaN(f) && !math.IsInf(f, 0) {
				return v
			}
		}
	}
	return n.Value
}
